// urql for learning-gateway: copy this file.

import { Client, fetchExchange, subscriptionExchange } from "@urql/core";
import { persistedExchange } from "@urql/exchange-persisted";
import { createClient } from "graphql-ws";

/**
 * Return a client of the gateway at `url`, with an API key.
 *
 * Subscriptions go by fetch, as server-sent events: no second connection, nothing else to install.
 * With `sockets` they go through one websocket; that is a client of graphql-ws.
 */
export function gatewayClient({ url, key, sockets, fetch }) {
  const byWebsocket = subscriptionExchange({
    forwardSubscription: ({ query, ...rest }) => ({
      subscribe: (sink) => ({ unsubscribe: sockets.subscribe({ query, ...rest }, sink) }),
    }),
  });
  // A document is sent once with its hash, and by its hash alone from then on. Both by POST: in an
  // address variables would stand in the logs of whatever is in between.
  const byHash = persistedExchange({
    preferGetForPersistedQueries: false,
    enableForMutation: true,
  });
  return new Client({
    url: `${url}/graphql`,
    preferGetMethod: false,
    fetchOptions: { headers: { Authorization: `Bearer ${key}` } },
    exchanges: sockets ? [byHash, fetchExchange, byWebsocket] : [byHash, fetchExchange],
    fetchSubscriptions: !sockets,
    fetch,
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
