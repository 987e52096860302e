// Relay for learning-gateway: copy this file.

import { createClient } from "graphql-ws";
import relay from "relay-runtime";

const { Environment, Network, Observable, RecordSource, Store } = relay;

/** What the gateway said went wrong when nothing came back; `codes` are stable. */
export class GatewayError extends Error {
  constructor(errors) {
    super(errors[0].message);
    this.errors = errors;
    this.codes = errors.map((error) => error.extensions?.code);
  }
}

/**
 * Return an environment on the gateway at `url`, with an API key. It opens a websocket for the
 * first subscription. Browsers have a WebSocket; Node before 22 takes the one of the package ws.
 */
export function gatewayEnvironment({ url, key, webSocketImpl = globalThis.WebSocket }) {
  const Authorization = `Bearer ${key}`;
  const sockets = createClient({
    url: `${url.replace(/^http/, "ws")}/graphql`,
    connectionParams: { Authorization }, // a browser cannot send headers with a websocket
    webSocketImpl,
  });

  // relay-compiler keeps the texts out of the bundle: a document is known by its hash, which
  // `learning-gateway documents register persisted.json` has told the gateway.
  async function fetchAnswer({ id }, variables) {
    const response = await fetch(`${url}/graphql`, {
      method: "POST",
      headers: {
        Authorization,
        Accept: "application/graphql-response+json, application/json",
        "Content-Type": "application/json",
      },
      body: JSON.stringify({ documentId: id, variables }),
    });
    const answer = await response.json();
    // Relay takes data with nulls in it for an answer, and forgets the errors beside it: of a
    // provider that is down the store knows what `sources` says. Nothing at all is an error.
    const fields = Object.values(answer.data ?? {});
    if (answer.errors && fields.every((field) => field === null)) {
      throw new GatewayError(answer.errors);
    }
    return answer;
  }

  function subscribe({ id }, variables) {
    const asked = { documentId: id, variables, query: "" }; // graphql-ws insists on a text
    return Observable.create((sink) => sockets.subscribe(asked, sink));
  }

  return new Environment({
    network: Network.create(fetchAnswer, subscribe),
    store: new Store(new RecordSource()),
  });
}
