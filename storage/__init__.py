"""What the gateway keeps: records, credentials, sessions, media. No HTTP, no GraphQL."""
