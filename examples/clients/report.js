// What the tours print, and how they compare it with what the simulated platforms hold.
// Nothing of this is needed in a product.

import assert from "node:assert/strict";

export { assert };

export const url = process.env.LEARNING_GATEWAY_URL ?? "http://127.0.0.1:8180";
export const key = process.env.LEARNING_GATEWAY_TOKEN;
export const expected = JSON.parse(process.env.EXPECTED);

/** Tell that a feature works: run.py makes the table of README.md from these lines. */
export function shown(feature, text) {
  console.log(`[${feature}] ${text}`);
}
