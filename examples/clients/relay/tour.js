// What a product does with the gateway, in Relay: npm run compile && node relay/tour.js

import relay from "relay-runtime";
import WebSocket from "ws";

import { assert, expected, key, shown, url } from "../report.js";
import COURSES from "./__generated__/rosterCoursesQuery.graphql.js";
import END from "./__generated__/rosterEndMutation.graphql.js";
import ENROLL from "./__generated__/rosterEnrollMutation.graphql.js";
import FIND from "./__generated__/rosterFindQuery.graphql.js";
import PROGRESS from "./__generated__/rosterProgressSubscription.graphql.js";
import REFRESH from "./__generated__/rosterRefreshMutation.graphql.js";
import USERS from "./__generated__/rosterUsersQuery.graphql.js";
import { gatewayEnvironment } from "./gateway.js";

const { commitMutation, createOperationDescriptor, fetchQuery, requestSubscription } = relay;
const environment = gatewayEnvironment({ url, key, webSocketImpl: WebSocket });

const query = (operation, variables, on = environment) =>
  fetchQuery(on, operation, variables).toPromise();

const mutate = (mutation, variables) =>
  new Promise((onCompleted, onError) => {
    commitMutation(environment, { mutation, variables, onCompleted, onError });
  });

// ---- query -----------------------------------------------------------------------------

{
  const data = await query(COURSES, { providerIds: ["2"] });
  const courses = data.courses.edges.map((edge) => edge.node);
  const enrollments = courses.flatMap((course) => course.enrollments.edges);
  assert.equal(data.providers.length, 3);
  assert.equal(courses.length, expected.courses["2"]);
  assert.equal(enrollments.length, expected.enrollments["2"]);
  const names = data.providers.map((provider) => provider.name).join(", ");
  shown("query", `${names}; ${courses.length} courses, ${enrollments.length} enrollments`);
}

// ---- pages -----------------------------------------------------------------------------

{
  // What usePaginationFragment does: each page is added to the one list in the store.
  const filter = { providerIds: ["1", "2"] };
  const first = createOperationDescriptor(USERS, { filter, first: 9 });
  environment.retain(first);
  let pages = 0;
  let users;
  do {
    await query(USERS, { filter, first: 9, after: users?.pageInfo.endCursor });
    ({ users } = environment.lookup(first.fragment).data);
    pages += 1;
  } while (users.pageInfo.hasNextPage);
  const ids = users.edges.map((edge) => edge.node.id);
  assert.equal(ids.length, expected.users["1"] + expected.users["2"]);
  assert.equal(new Set(ids).size, ids.length);
  shown("pages", `${ids.length} users in ${pages} pages, one connection of the store`);
}

// ---- one provider is down ----------------------------------------------------------------

{
  const { users } = await query(USERS, { filter: { providerIds: ["1", "3"] }, first: 100 });
  const missing = users.sources.filter((source) => source.status === "FAILED");
  assert.equal(users.edges.length, expected.users["1"]);
  assert.deepEqual(
    missing.map((source) => [source.providerId, source.code]),
    [["3", "PROVIDER_UNAVAILABLE"]],
  );
  shown("partial result", `${users.edges.length} users and ${missing[0].code} of provider 3`);
}

// ---- a mutation, with what it refuses ------------------------------------------------------

{
  const found = await query(FIND, { providerIds: ["2"], usernames: ["prince"], title: "ethics" });
  const userId = found.users.nodes[0].id;
  const courseId = found.courses.nodes[0].id;
  // The same key again gives the first answer and sends nothing to the provider.
  const input = { userId, courseId, idempotencyKey: crypto.randomUUID() };
  const { enrollUser: first } = await mutate(ENROLL, { input });
  const { enrollUser: again } = await mutate(ENROLL, { input });
  assert.equal(first.__typename, "EnrollUserPayload");
  assert.equal(first.created, true);
  assert.deepEqual(again, first);
  const end = await mutate(END, {
    input: { enrollmentId: first.enrollment.id, courseId, ending: "REMOVE" },
  });
  assert.equal(end.endEnrollment.enrollment.state, "DROPPED");
  // What was to be expected is data, not an error.
  const { enrollUser: refused } = await mutate(ENROLL, {
    input: { userId, courseId, role: "PROCTOR" },
  });
  assert.equal(refused.__typename, "WriteRefused");
  assert.equal(refused.field, "role");
  shown("mutation", `enrolled, once, and ended; refused with ${refused.code}`);
}

// ---- errors by their code -------------------------------------------------------------------

{
  const stranger = gatewayEnvironment({ url, key: "not a key", webSocketImpl: WebSocket });
  const codes = [];
  for (const [on, variables] of [
    [environment, { first: 5, after: "not a cursor" }],
    [stranger, { first: 5 }],
  ]) {
    await query(USERS, variables, on).catch((error) => codes.push(...error.codes));
  }
  assert.deepEqual(codes, ["BAD_INPUT", "UNAUTHENTICATED"]);
  shown("error codes", codes.join(" and "));
}

// ---- a subscription -------------------------------------------------------------------------

{
  const { refreshProvider } = await mutate(REFRESH, { input: { providerId: "1" } });
  const events = [];
  await new Promise((onCompleted, onError) => {
    const onNext = ({ importProgress }) => events.push(importProgress);
    const variables = { providerId: "1" };
    const subscription = PROGRESS;
    requestSubscription(environment, { subscription, variables, onNext, onCompleted, onError });
  });
  const last = events.at(-1);
  assert.equal(last.id, refreshProvider.run.id);
  assert.equal(last.state, "DONE");
  assert.equal(last.counts.find((count) => count.kind === "USERS").read, expected.users["1"]);
  shown("websocket", `${events.length} events of an import, the last one ${last.state}`);
}
shown("trusted documents", "all of the above was asked by the hashes in persisted.json");
