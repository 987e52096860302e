// As Hive Gateway comes, or with DEDUPLICATE=yes and everything it has against repeated work.
import { defineConfig } from "@graphql-hive/gateway";
import { useDeduplicateRequest } from "@graphql-hive/plugin-deduplicate-request";

const deduplicates = process.env.DEDUPLICATE === "yes";

export const gatewayConfig = defineConfig({
  logging: "warn",
  inboundInflightRequestDeduplication: deduplicates,
  plugins: () => (deduplicates ? [useDeduplicateRequest()] : []),
});
