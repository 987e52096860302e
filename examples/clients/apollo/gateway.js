// Apollo Client for learning-gateway: copy this file.

import { ApolloClient, ApolloLink, HttpLink, InMemoryCache } from "@apollo/client";
import { GraphQL17Alpha9Handler } from "@apollo/client/incremental";
import { PersistedQueryLink } from "@apollo/client/link/persisted-queries";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { relayStylePagination } from "@apollo/client/utilities";
import { OperationTypeNode } from "graphql";
import { createClient } from "graphql-ws";

/**
 * Return a client of the gateway at `url`, with an API key.
 *
 * Subscriptions go by HTTP, as answers in many parts: no second connection, nothing else to
 * install. With `sockets` they go through one websocket; that is a client of graphql-ws.
 */
export function gatewayClient({ url, key, sockets, fetch }) {
  const http = new HttpLink({
    uri: `${url}/graphql`,
    headers: { Authorization: `Bearer ${key}` },
    fetch,
  });
  // A document is sent once with its hash, and by its hash alone from then on.
  const byHash = new PersistedQueryLink({ sha256 }).concat(http);
  const isSubscription = ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION;
  return new ApolloClient({
    link: sockets ? ApolloLink.split(isSubscription, new GraphQLWsLink(sockets), byHash) : byHash,
    incrementalHandler: new GraphQL17Alpha9Handler(), // for @defer
    cache: new InMemoryCache({
      // Global ids make every User, Course, Enrollment and Provider an entity by itself.
      // Connections are lists: pages of the same filter and order are one list, by cursor.
      typePolicies: {
        Query: {
          fields: {
            users: relayStylePagination(["filter", "orderBy"]),
            courses: relayStylePagination(["filter", "orderBy"]),
            enrollments: relayStylePagination(["filter", "orderBy"]),
          },
        },
        Course: { fields: { enrollments: relayStylePagination(["filter"]) } },
        User: { fields: { enrollments: relayStylePagination(["filter"]) } },
      },
      possibleTypes: {
        Node: ["Course", "Enrollment", "Provider", "User"],
        EnrollUserResult: ["EnrollUserPayload", "WriteRefused"],
        EndEnrollmentResult: ["EndEnrollmentPayload", "WriteRefused"],
        RefreshProviderResult: ["ImportRequested", "ProviderRefused"],
      },
    }),
    defaultOptions: {
      // A provider that is down costs its rows and an entry in errors. "all" keeps the others'
      // rows; the default, "none", would throw them away.
      query: { errorPolicy: "all" },
      watchQuery: { errorPolicy: "all" },
    },
  });
}

/** Return what `gatewayClient` takes as `sockets`; Node before 22 needs the package ws for it. */
export function gatewaySockets({ url, key, webSocketImpl = globalThis.WebSocket }) {
  return createClient({
    url: `${url.replace(/^http/, "ws")}/graphql`,
    connectionParams: { Authorization: `Bearer ${key}` }, // browsers send no headers here
    webSocketImpl,
  });
}

async function sha256(text) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
