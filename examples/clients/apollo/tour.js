// What a product does with the gateway, in Apollo Client: node apollo/tour.js

import { CombinedGraphQLErrors, gql } from "@apollo/client";
import { filter, firstValueFrom, lastValueFrom, tap, toArray } from "rxjs";
import WebSocket from "ws";

import { assert, expected, key, shown, url } from "../report.js";
import { gatewayClient, gatewaySockets } from "./gateway.js";

const client = gatewayClient({ url, key });

// ---- query -----------------------------------------------------------------------------

{
  const { data } = await client.query({
    query: gql`
      query Courses($providerIds: [ID!]) {
        providers { id providerId name state }
        courses(filter: { providerIds: $providerIds }) {
          edges {
            node {
              id
              title
              iconUrl(width: 64)
              enrollments { totalCount edges { node { id state role { value } userId } } }
            }
          }
        }
      }
    `,
    variables: { providerIds: ["2"] },
  });
  const courses = data.courses.edges.map((edge) => edge.node);
  const enrollments = courses.flatMap((course) => course.enrollments.edges);
  assert.equal(data.providers.length, 3);
  assert.equal(courses.length, expected.courses["2"]);
  assert.equal(enrollments.length, expected.enrollments["2"]);
  const names = data.providers.map((provider) => provider.name).join(", ");
  shown("query", `${names}; ${courses.length} courses, ${enrollments.length} enrollments`);
}

// ---- pages -----------------------------------------------------------------------------

const USERS = gql`
  query Users($filter: UserFilter, $first: Int!, $after: String) {
    users(filter: $filter, first: $first, after: $after) {
      edges { node { id displayName provider { id providerId } } }
      pageInfo { hasNextPage endCursor }
      sources { providerId status code retryable }
    }
  }
`;

{
  const users = client.watchQuery({
    query: USERS,
    variables: { filter: { providerIds: ["1", "2"] }, first: 9 },
  });
  const component = users.subscribe(() => {}); // as useQuery does
  const isWhole = ({ dataState }) => dataState === "complete";
  const first = await firstValueFrom(users.pipe(filter(isWhole)));
  let { pageInfo } = first.data.users;
  let pages = 1;
  while (pageInfo.hasNextPage) {
    const page = await users.fetchMore({ variables: { after: pageInfo.endCursor } });
    ({ pageInfo } = page.data.users);
    pages += 1;
  }
  const whole = await firstValueFrom(
    users.pipe(filter(({ data }) => data.users?.pageInfo?.hasNextPage === false)),
  );
  const ids = whole.data.users.edges.map((edge) => edge.node.id);
  component.unsubscribe();
  assert.equal(ids.length, expected.users["1"] + expected.users["2"]);
  assert.equal(new Set(ids).size, ids.length);
  shown("pages", `${ids.length} users in ${pages} pages, merged by the cache`);
}

// ---- one provider is down ----------------------------------------------------------------

{
  const { data, error } = await client.query({
    query: USERS,
    variables: { filter: { providerIds: ["1", "3"] }, first: 100 },
  });
  assert(CombinedGraphQLErrors.is(error));
  const [{ path, extensions }] = error.errors;
  assert.deepEqual(path, ["users"]);
  assert.equal(extensions.code, "PROVIDER_UNAVAILABLE");
  assert.equal(extensions.providerId, "3");
  assert.equal(data.users.edges.length, expected.users["1"]);
  assert.deepEqual(
    data.users.sources.map((source) => [source.providerId, source.status]),
    [["1", "OK"], ["3", "FAILED"]],
  );
  shown("partial result", `${data.users.edges.length} users and ${extensions.code} of provider 3`);
}

// ---- a mutation, with what it refuses ------------------------------------------------------

{
  const ENROLL = gql`
    mutation Enroll($input: EnrollUserInput!) {
      enrollUser(input: $input) {
        ... on EnrollUserPayload { created enrollment { id state } }
        ... on WriteRefused { code message field retryable }
      }
    }
  `;
  const END = gql`
    mutation End($input: EndEnrollmentInput!) {
      endEnrollment(input: $input) {
        ... on EndEnrollmentPayload { changed enrollment { id state } }
        ... on WriteRefused { code message field retryable }
      }
    }
  `;
  const find = await client.query({
    query: gql`
      query PrinceAndEthics($providerIds: [ID!]) {
        users(filter: { providerIds: $providerIds, usernames: ["prince"] }) {
          edges { node { id } }
        }
        courses(filter: { providerIds: $providerIds, search: "ethics" }) {
          edges { node { id } }
        }
      }
    `,
    variables: { providerIds: ["2"] },
  });
  const userId = find.data.users.edges[0].node.id;
  const courseId = find.data.courses.edges[0].node.id;
  // The same key again gives the first answer and sends nothing to the provider.
  const input = { userId, courseId, idempotencyKey: crypto.randomUUID() };
  const first = await client.mutate({ mutation: ENROLL, variables: { input } });
  const again = await client.mutate({ mutation: ENROLL, variables: { input } });
  assert.equal(first.data.enrollUser.__typename, "EnrollUserPayload");
  assert.equal(first.data.enrollUser.created, true);
  assert.deepEqual(again.data, first.data);
  const { id: enrollmentId } = first.data.enrollUser.enrollment;
  const end = await client.mutate({
    mutation: END,
    variables: { input: { enrollmentId, courseId, ending: "REMOVE" } },
  });
  assert.equal(end.data.endEnrollment.enrollment.state, "DROPPED");
  // What was to be expected is data, not an error.
  const refused = await client.mutate({
    mutation: ENROLL,
    variables: { input: { userId, courseId, role: "PROCTOR" } },
  });
  assert.equal(refused.data.enrollUser.__typename, "WriteRefused");
  assert.equal(refused.data.enrollUser.field, "role");
  shown("mutation", `enrolled, once, and ended; refused with ${refused.data.enrollUser.code}`);
}

// ---- errors by their code -------------------------------------------------------------------

{
  // What the server says arrives as one kind of error, whatever the HTTP status was.
  const codes = [];
  const stranger = gatewayClient({ url, key: "not a key" });
  for (const [asking, variables] of [
    [client, { first: 5, after: "not a cursor" }],
    [stranger, { first: 5 }],
  ]) {
    const { error } = await asking.query({ query: USERS, variables });
    assert(CombinedGraphQLErrors.is(error));
    codes.push(error.errors[0].extensions.code);
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
    const fetchPolicy = "network-only";
    const { data } = await watched.query({ query: gql(document), fetchPolicy });
    assert.equal(data.providers.length, 3);
  }
  const hasText = sent.map((body) => body.query !== undefined);
  assert.deepEqual(hasText, [false, true, false]);
  shown("APQ", "asked by hash, told the text once, asked by hash again");
}

// ---- a slow provider later ------------------------------------------------------------------

{
  // Of the slow providers one is down: its error comes with the later part.
  const dashboard = client.watchQuery({
    query: gql`
      query Dashboard($quick: [ID!], $slow: [ID!]) {
        quick: users(filter: { providerIds: $quick }, first: 5) { edges { node { id } } }
        ... @defer {
          slow: users(filter: { providerIds: $slow }, first: 50, maxAge: 0) {
            edges { node { id } }
          }
        }
      }
    `,
    variables: { quick: ["1"], slow: ["2", "3"] },
  });
  const parts = [];
  const isWhole = ({ dataState }) => dataState === "complete";
  const whole = await firstValueFrom(
    dashboard.pipe(tap((part) => parts.push(part)), filter(isWhole)),
  );
  const early = parts.find(({ dataState }) => dataState === "streaming");
  assert.equal(early.data.quick.edges.length, 5);
  assert.equal(early.data.slow, undefined);
  assert.equal(whole.data.slow.edges.length, expected.users["2"]);
  assert.equal(whole.error.errors[0].extensions.code, "PROVIDER_UNAVAILABLE");
  shown("@defer", `provider 1 first, ${whole.data.slow.edges.length} users of provider 2 later`);
}

// ---- a subscription, both ways --------------------------------------------------------------

{
  const REFRESH = gql`
    mutation Refresh($input: RefreshProviderInput!) {
      refreshProvider(input: $input) {
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
  const variables = { providerId: "1" };
  const sockets = gatewaySockets({ url, key, webSocketImpl: WebSocket });
  for (const [feature, watching] of [
    ["multipart", client],
    ["websocket", gatewayClient({ url, key, sockets })],
  ]) {
    const { data } = await client.mutate({ mutation: REFRESH, variables: { input: variables } });
    const events = await lastValueFrom(
      watching.subscribe({ query: PROGRESS, variables }).pipe(toArray()),
    );
    const last = events.at(-1).data.importProgress;
    assert.equal(last.id, data.refreshProvider.run.id);
    assert.equal(last.state, "DONE");
    assert.equal(last.counts.find((count) => count.kind === "USERS").read, expected.users["1"]);
    shown(feature, `${events.length} events of an import, the last one ${last.state}`);
  }
  await sockets.dispose();
}
