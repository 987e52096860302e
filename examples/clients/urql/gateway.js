// urql for learning-gateway: copy this file.

import { Client, fetchExchange, subscriptionExchange } from "@urql/core";
import { createClient } from "graphql-ws";

/**
 * Return a client of the gateway at `url`, with an API key.
 *
 * Subscriptions go by fetch, as server-sent events: no second connection, nothing else to install.
 * With `sockets` they go through one websocket; that is a client of graphql-ws.
 */
export function gatewayClient({ url, key, sockets }) {
  const byWebsocket = subscriptionExchange({
    forwardSubscription: ({ query, ...rest }) => ({
      subscribe: (sink) => ({ unsubscribe: sockets.subscribe({ query, ...rest }, sink) }),
    }),
  });
  return new Client({
    url: `${url}/graphql`,
    // urql sends short queries by GET unless told otherwise. The gateway takes both; POST keeps
    // variables out of the logs of whatever is in between.
    preferGetMethod: false,
    fetchOptions: { headers: { Authorization: `Bearer ${key}` } },
    exchanges: sockets ? [fetchExchange, byWebsocket] : [fetchExchange],
    fetchSubscriptions: !sockets,
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
