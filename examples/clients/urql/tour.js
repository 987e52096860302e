// What a product does with the gateway, in urql: node urql/tour.js

import { gql } from "@urql/core";
import WebSocket from "ws";

import { assert, expected, key, shown, url } from "../report.js";
import { gatewayClient, gatewaySockets } from "./gateway.js";

const client = gatewayClient({ url, key });

// ---- query -----------------------------------------------------------------------------

{
  const COURSES = gql`
    query Courses($providerIds: [ID!]) {
      providers { id providerId name state }
      courses(filter: { providerIds: $providerIds }) {
        nodes { id title enrollments { totalCount nodes { id state role { value } userId } } }
      }
    }
  `;
  const { data, error } = await client.query(COURSES, { providerIds: ["2"] });
  assert.equal(error, undefined);
  const enrollments = data.courses.nodes.flatMap((course) => course.enrollments.nodes);
  assert.equal(data.providers.length, 3);
  assert.equal(data.courses.nodes.length, expected.courses["2"]);
  assert.equal(enrollments.length, expected.enrollments["2"]);
  const names = data.providers.map((provider) => provider.name).join(", ");
  const { length } = data.courses.nodes;
  shown("query", `${names}; ${length} courses, ${enrollments.length} enrollments`);
}

// ---- pages -----------------------------------------------------------------------------

const USERS = gql`
  query Users($filter: UserFilter, $first: Int!, $after: String) {
    users(filter: $filter, first: $first, after: $after) {
      nodes { id displayName provider { id providerId } }
      pageInfo { hasNextPage endCursor }
      sources { providerId status code retryable retryAfterSeconds }
    }
  }
`;

/** Yield every user, page by page; stops at the first error that leaves no data. */
async function* allUsers(providerIds, first) {
  for (let after = null; ; ) {
    const { data, error } = await client.query(USERS, { filter: { providerIds }, first, after });
    if (!data?.users) throw error;
    yield data.users;
    if (!data.users.pageInfo.hasNextPage) return;
    after = data.users.pageInfo.endCursor;
  }
}

{
  const ids = new Set();
  let pages = 0;
  for await (const page of allUsers(["1", "2"], 9)) {
    page.nodes.forEach((user) => ids.add(user.id));
    pages += 1;
  }
  assert.equal(ids.size, expected.users["1"] + expected.users["2"]);
  shown("pages", `${ids.size} users in ${pages} pages`);
}

// ---- one provider is down ----------------------------------------------------------------

{
  // urql gives data and error side by side: what came is there, the error says what is missing.
  const variables = { filter: { providerIds: ["1", "3"] }, first: 100 };
  const { data, error } = await client.query(USERS, variables);
  const [{ path, extensions }] = error.graphQLErrors;
  assert.equal(error.networkError, undefined);
  assert.deepEqual(path, ["users"]);
  assert.equal(extensions.code, "PROVIDER_UNAVAILABLE");
  assert.equal(extensions.providerId, "3");
  assert.equal(data.users.nodes.length, expected.users["1"]);
  assert.deepEqual(
    data.users.sources.map((source) => [source.providerId, source.status]),
    [["1", "OK"], ["3", "FAILED"]],
  );
  shown("partial result", `${data.users.nodes.length} users and ${extensions.code} of provider 3`);
}

// ---- a mutation, with what it refuses ------------------------------------------------------

{
  const ENROLL = gql`
    mutation Enroll($input: EnrollUserInput!) {
      enrollUser(input: $input) {
        __typename
        ... on EnrollUserPayload { created enrollment { id state } }
        ... on WriteRefused { code message field retryable }
      }
    }
  `;
  const END = gql`
    mutation End($input: EndEnrollmentInput!) {
      endEnrollment(input: $input) {
        __typename
        ... on EndEnrollmentPayload { changed enrollment { id state } }
        ... on WriteRefused { code message field retryable }
      }
    }
  `;
  const FIND = gql`
    query Find($providerIds: [ID!], $usernames: [String!], $title: String) {
      users(filter: { providerIds: $providerIds, usernames: $usernames }) { nodes { id } }
      courses(filter: { providerIds: $providerIds, search: $title }) { nodes { id } }
    }
  `;
  const wanted = { providerIds: ["2"], usernames: ["prince"], title: "ethics" };
  const { data: found } = await client.query(FIND, wanted);
  const userId = found.users.nodes[0].id;
  const courseId = found.courses.nodes[0].id;
  // The same key again gives the first answer and sends nothing to the provider.
  const input = { userId, courseId, idempotencyKey: crypto.randomUUID() };
  const first = await client.mutation(ENROLL, { input });
  const again = await client.mutation(ENROLL, { input });
  assert.equal(first.data.enrollUser.__typename, "EnrollUserPayload");
  assert.equal(first.data.enrollUser.created, true);
  assert.deepEqual(again.data, first.data);
  const { id: enrollmentId } = first.data.enrollUser.enrollment;
  const end = await client.mutation(END, { input: { enrollmentId, courseId, ending: "REMOVE" } });
  assert.equal(end.data.endEnrollment.enrollment.state, "DROPPED");
  // What was to be expected is data, not an error.
  const { data } = await client.mutation(ENROLL, { input: { userId, courseId, role: "PROCTOR" } });
  assert.equal(data.enrollUser.__typename, "WriteRefused");
  assert.equal(data.enrollUser.field, "role");
  shown("mutation", `enrolled, once, and ended; refused with ${data.enrollUser.code}`);
}

// ---- errors by their code -------------------------------------------------------------------

{
  const codes = [];
  const stranger = gatewayClient({ url, key: "not a key" });
  for (const [asking, variables] of [
    [client, { first: 5, after: "not a cursor" }],
    [stranger, { first: 5 }],
  ]) {
    const { error } = await asking.query(USERS, variables);
    codes.push(error.graphQLErrors[0].extensions.code);
  }
  assert.deepEqual(codes, ["BAD_INPUT", "UNAUTHENTICATED"]);
  shown("error codes", codes.join(" and "));
}

// ---- documents by their hash ------------------------------------------------------------------

{
  const sent = [];
  const watched = gatewayClient({
    url,
    key,
    fetch: (address, options) => {
      sent.push(JSON.parse(options.body));
      return fetch(address, options);
    },
  });
  const document = `query Providers${Date.now()} { providers { id name } }`;
  for (let times = 0; times < 2; times += 1) {
    const { data } = await watched.query(document, {});
    assert.equal(data.providers.length, 3);
  }
  const hasText = sent.map((body) => body.query !== undefined);
  assert.deepEqual(hasText, [false, true, false]);
  shown("APQ", "asked by hash, told the text once, asked by hash again");
}

// ---- a slow provider later ------------------------------------------------------------------

{
  // Of the slow providers one is down: its error comes with the later part.
  const DASHBOARD = gql`
    query Dashboard($quick: [ID!], $slow: [ID!]) {
      quick: users(filter: { providerIds: $quick }, first: 5) { nodes { id } }
      ... @defer {
        slow: users(filter: { providerIds: $slow }, first: 50, maxAge: 0) { nodes { id } }
      }
    }
  `;
  const results = [];
  await new Promise((resolve) => {
    client.query(DASHBOARD, { quick: ["1"], slow: ["2", "3"] }).subscribe((result) => {
      results.push(result);
      if (!result.hasNext) resolve();
    });
  });
  const [early] = results;
  const whole = results.at(-1);
  assert.equal(early.data.quick.nodes.length, 5);
  assert.equal(early.data.slow, undefined);
  assert.equal(whole.data.slow.nodes.length, expected.users["2"]);
  assert.equal(whole.error.graphQLErrors[0].extensions.code, "PROVIDER_UNAVAILABLE");
  shown("@defer", `provider 1 first, ${whole.data.slow.nodes.length} users of provider 2 later`);
}

// ---- a subscription, both ways --------------------------------------------------------------

{
  const REFRESH = gql`
    mutation Refresh($input: RefreshProviderInput!) {
      refreshProvider(input: $input) {
        __typename
        ... on ImportRequested { run { id state } }
        ... on ProviderRefused { code message }
      }
    }
  `;
  const PROGRESS = gql`
    subscription Progress($providerId: ID!) {
      importProgress(providerId: $providerId) { id state reading counts { kind read total } }
    }
  `;
  const sockets = gatewaySockets({ url, key, webSocketImpl: WebSocket });
  for (const [feature, watching] of [
    ["SSE", client],
    ["websocket", gatewayClient({ url, key, sockets })],
  ]) {
    const { data } = await client.mutation(REFRESH, { input: { providerId: "1" } });
    const events = [];
    await new Promise((resolve, reject) => {
      watching.subscription(PROGRESS, { providerId: "1" }).subscribe((result) => {
        if (result.error) reject(result.error);
        if (result.data) events.push(result.data.importProgress);
        if (result.hasNext === false) resolve();
      });
    });
    const last = events.at(-1);
    assert.equal(last.id, data.refreshProvider.run.id);
    assert.equal(last.state, "DONE");
    assert.equal(last.counts.find((count) => count.kind === "USERS").read, expected.users["1"]);
    shown(feature, `${events.length} events of an import, the last one ${last.state}`);
  }
  await sockets.dispose();
}
