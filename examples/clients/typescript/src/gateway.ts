// learning-gateway with the types of graphql-codegen's client preset: copy this file.

import { createClient, type Client, type RequestParams } from "graphql-sse";

import type { TypedDocumentString } from "./generated/graphql.js";

/** One thing that went wrong. Branch on `extensions.code`, never on the message. */
export interface Problem {
  message: string;
  path?: (string | number)[];
  extensions?: { code?: string; providerId?: string; retryable?: boolean };
}

/** What came, and what is missing: a provider that is down costs its rows and one problem. */
export interface Answer<Data> {
  data: Data;
  problems: Problem[];
}

/** Nothing came back. */
export class GatewayError extends Error {
  constructor(readonly problems: Problem[]) {
    super(problems[0]?.message ?? "The gateway gave no answer");
  }

  get codes(): string[] {
    return this.problems.flatMap((problem) => problem.extensions?.code ?? []);
  }
}

/** Return the hash in persisted-documents.json, which the gateway was told beforehand:
 * `learning-gateway documents register persisted-documents.json`. */
function idOf<Data, Variables>(document: TypedDocumentString<Data, Variables>): string {
  return document.__meta__?.["hash"];
}

type VariablesOf<Variables> = Variables extends Record<string, never> ? [] : [Variables];

/** The gateway at a URL, with an API key. Documents know the types of their variables and data. */
export class Gateway {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #events: Client;

  constructor({ url, key }: { url: string; key: string }) {
    this.#url = `${url}/graphql`;
    this.#headers = { Authorization: `Bearer ${key}` };
    this.#events = createClient({ url: this.#url, headers: this.#headers });
  }

  /** Run a query or a mutation; throws a GatewayError if nothing came back. */
  async ask<Data, Variables>(
    document: TypedDocumentString<Data, Variables>,
    ...[variables]: VariablesOf<Variables>
  ): Promise<Answer<Data>> {
    const response = await fetch(this.#url, {
      method: "POST",
      headers: {
        ...this.#headers,
        Accept: "application/graphql-response+json, application/json",
        "Content-Type": "application/json",
      },
      body: JSON.stringify({ documentId: idOf(document), variables }),
    });
    const answer = (await response.json()) as { data?: Data | null; errors?: Problem[] };
    return this.#checked(answer);
  }

  /** Subscribe, and yield what comes until it has ended. */
  async *watch<Data, Variables>(
    document: TypedDocumentString<Data, Variables>,
    ...[variables]: VariablesOf<Variables>
  ): AsyncGenerator<Data> {
    const asked = { documentId: idOf(document), variables };
    // graphql-sse sends what it is given, and its types know documents by text only.
    const events = this.#events.iterate<Data>(asked as unknown as RequestParams);
    for await (const event of events) yield this.#checked(event as { data?: Data }).data;
  }

  #checked<Data>(answer: { data?: Data | null; errors?: Problem[] }): Answer<Data> {
    const { data, errors: problems = [] } = answer;
    const isEmpty = !data || Object.values(data).every((field) => field === null);
    if (!data || (isEmpty && problems.length > 0)) throw new GatewayError(problems);
    return { data, problems };
  }
}
