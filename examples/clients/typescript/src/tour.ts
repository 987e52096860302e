// What a product does with the gateway, typed: npm run generate && npm run build

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import { Gateway, GatewayError, type Answer } from "./gateway.js";
import { graphql } from "./generated/index.js";
import type { UsersQuery, UsersQueryVariables } from "./generated/graphql.js";

const url = process.env["LEARNING_GATEWAY_URL"] ?? "http://127.0.0.1:8180";
const gateway = new Gateway({ url, key: process.env["LEARNING_GATEWAY_TOKEN"] ?? "" });
const expected: Record<string, Record<string, number>> = JSON.parse(process.env["EXPECTED"] ?? "");
const held = (what: string, providerId: string): number => expected[what]?.[providerId] ?? NaN;

/** Tell that a feature works: run.py makes the table of README.md from these lines. */
function shown(feature: string, text: string): void {
  console.log(`[${feature}] ${text}`);
}

// ---- query -----------------------------------------------------------------------------

const COURSES = graphql(`
  query Courses($providerIds: [ID!]) {
    providers { providerId name state }
    courses(filter: { providerIds: $providerIds }) {
      nodes { id title enrollments { nodes { id state role { value } userId } } }
    }
  }
`);

{
  const { data } = await gateway.ask(COURSES, { providerIds: ["2"] });
  // A provider that is down leaves null in its place, and the types say so.
  const courses = data.courses?.nodes ?? [];
  const enrollments = courses.flatMap((course) => course.enrollments?.nodes ?? []);
  assert.equal(data.providers.length, 3);
  assert.equal(courses.length, held("courses", "2"));
  assert.equal(enrollments.length, held("enrollments", "2"));
  const names = data.providers.map((provider) => provider.name).join(", ");
  shown("query", `${names}; ${courses.length} courses, ${enrollments.length} enrollments`);
}

// ---- pages -----------------------------------------------------------------------------

const USERS = graphql(`
  query Users($filter: UserFilter, $first: Int!, $after: String) {
    users(filter: $filter, first: $first, after: $after) {
      nodes { id displayName email provider { providerId } }
      pageInfo { hasNextPage endCursor }
      sources { providerId status code retryable retryAfterSeconds }
    }
  }
`);

type Users = NonNullable<UsersQuery["users"]>;

/** Yield the pages of all users of some providers. */
async function* allUsers(providerIds: string[], first: number): AsyncGenerator<Users> {
  for (let after: string | null = null; ; ) {
    const variables: UsersQueryVariables = { filter: { providerIds }, first, after };
    const { data, problems }: Answer<UsersQuery> = await gateway.ask(USERS, variables);
    if (!data.users) throw new GatewayError(problems);
    yield data.users;
    if (!data.users.pageInfo.hasNextPage) return;
    after = data.users.pageInfo.endCursor;
  }
}

{
  const ids = new Set<string>();
  let pages = 0;
  for await (const page of allUsers(["1", "2"], 9)) {
    page.nodes.forEach((user) => ids.add(user.id));
    pages += 1;
  }
  assert.equal(ids.size, held("users", "1") + held("users", "2"));
  shown("pages", `${ids.size} users in ${pages} pages`);
}

// ---- one provider is down ----------------------------------------------------------------

{
  const filter = { providerIds: ["1", "3"] };
  const { data, problems } = await gateway.ask(USERS, { filter, first: 100 });
  assert.equal(problems[0]?.extensions?.code, "PROVIDER_UNAVAILABLE");
  assert.equal(problems[0]?.extensions?.providerId, "3");
  assert.equal(data.users?.nodes.length, held("users", "1"));
  assert.deepEqual(
    data.users?.sources.map((source) => [source.providerId, source.status]),
    [["1", "OK"], ["3", "FAILED"]],
  );
  shown("partial result", `${data.users?.nodes.length} users, PROVIDER_UNAVAILABLE of provider 3`);
}

// ---- a mutation, with what it refuses ------------------------------------------------------

const FIND = graphql(`
  query Find($providerIds: [ID!], $usernames: [String!], $title: String) {
    users(filter: { providerIds: $providerIds, usernames: $usernames }) { nodes { id } }
    courses(filter: { providerIds: $providerIds, search: $title }) { nodes { id } }
  }
`);

const ENROLL = graphql(`
  mutation Enroll($input: EnrollUserInput!) {
    enrollUser(input: $input) {
      __typename
      ... on EnrollUserPayload { created enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
`);

const END = graphql(`
  mutation End($input: EndEnrollmentInput!) {
    endEnrollment(input: $input) {
      __typename
      ... on EndEnrollmentPayload { changed enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
`);

{
  const wanted = { providerIds: ["2"], usernames: ["prince"], title: "ethics" };
  const { data: found } = await gateway.ask(FIND, wanted);
  const userId = found.users?.nodes[0]?.id ?? "";
  const courseId = found.courses?.nodes[0]?.id ?? "";
  // The same key again gives the first answer and sends nothing to the provider.
  const input = { userId, courseId, idempotencyKey: randomUUID() };
  const { data: first } = await gateway.ask(ENROLL, { input });
  const { data: again } = await gateway.ask(ENROLL, { input });
  assert(first.enrollUser.__typename === "EnrollUserPayload"); // tsc knows the fields from here on
  assert.equal(first.enrollUser.created, true);
  assert.deepEqual(again, first);
  const { data: end } = await gateway.ask(END, {
    input: { enrollmentId: first.enrollUser.enrollment.id, courseId, ending: "REMOVE" },
  });
  assert(end.endEnrollment.__typename === "EndEnrollmentPayload");
  assert.equal(end.endEnrollment.enrollment.state, "DROPPED");
  // What was to be expected is data, not an error.
  const { data: refused } = await gateway.ask(ENROLL, {
    input: { userId, courseId, role: "PROCTOR" },
  });
  assert(refused.enrollUser.__typename === "WriteRefused");
  assert.equal(refused.enrollUser.field, "role");
  shown("mutation", `enrolled, once, and ended; refused with ${refused.enrollUser.code}`);
}

// ---- errors by their code -------------------------------------------------------------------

{
  const stranger = new Gateway({ url, key: "not a key" });
  const codes: string[] = [];
  for (const ask of [
    () => gateway.ask(USERS, { first: 5, after: "not a cursor" }),
    () => stranger.ask(USERS, { first: 5 }),
  ]) {
    await ask().catch((error: GatewayError) => codes.push(...error.codes));
  }
  assert.deepEqual(codes, ["BAD_INPUT", "UNAUTHENTICATED"]);
  shown("error codes", codes.join(" and "));
}

// ---- a subscription -------------------------------------------------------------------------

const REFRESH = graphql(`
  mutation Refresh($input: RefreshProviderInput!) {
    refreshProvider(input: $input) {
      __typename
      ... on ImportRequested { run { id state } }
      ... on ProviderRefused { code message }
    }
  }
`);

const PROGRESS = graphql(`
  subscription Progress($providerId: ID!) {
    importProgress(providerId: $providerId) { id state reading counts { kind read total } }
  }
`);

{
  const { data } = await gateway.ask(REFRESH, { input: { providerId: "1" } });
  assert(data.refreshProvider.__typename === "ImportRequested");
  const events = [];
  for await (const event of gateway.watch(PROGRESS, { providerId: "1" })) {
    events.push(event.importProgress);
  }
  const last = events.at(-1);
  assert.equal(last?.id, data.refreshProvider.run.id);
  assert.equal(last?.state, "DONE");
  assert.equal(last?.counts.find((count) => count.kind === "USERS")?.read, held("users", "1"));
  shown("SSE", `${events.length} events of an import, the last one ${last?.state}`);
}
shown("trusted documents", "all of the above was asked by the hashes in persisted-documents.json");
