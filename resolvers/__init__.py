"""What a field means: loaders, roster, icons. No GraphQL types, no SQL."""
