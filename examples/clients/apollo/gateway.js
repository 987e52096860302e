// Apollo Client for learning-gateway: copy this file.

import { ApolloClient, ApolloLink, HttpLink, InMemoryCache } from "@apollo/client";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { relayStylePagination } from "@apollo/client/utilities";
import { OperationTypeNode } from "graphql";
import { createClient } from "graphql-ws";

/**
 * Return a client of the gateway at `url`, with an API key. It opens a websocket for the first
 * subscription. Browsers have a WebSocket; Node before 22 takes the one of the package ws.
 */
export function gatewayClient({ url, key, webSocketImpl = globalThis.WebSocket }) {
  const Authorization = `Bearer ${key}`;
  const http = new HttpLink({ uri: `${url}/graphql`, headers: { Authorization } });
  const socket = createClient({
    url: `${url.replace(/^http/, "ws")}/graphql`,
    connectionParams: { Authorization }, // a browser cannot send headers with a websocket
    webSocketImpl,
  });
  const link = ApolloLink.split(
    ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION,
    new GraphQLWsLink(socket),
    http,
  );
  return new ApolloClient({
    link,
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
