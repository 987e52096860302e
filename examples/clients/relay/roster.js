// The operations, for relay-compiler only. In a product they stand in the components that need
// them, and babel-plugin-relay puts what was compiled in their place.

import { graphql } from "relay-runtime";

graphql`
  query rosterCoursesQuery($providerIds: [ID!]) {
    providers { providerId name state }
    courses(filter: { providerIds: $providerIds }) {
      edges { node { id title enrollments { edges { node { id state role { value } } } } } }
    }
  }
`;

// The connection is one list in the store; "filters" says which arguments make another list of it.
graphql`
  query rosterUsersQuery($filter: UserFilter, $first: Int!, $after: String) {
    users(filter: $filter, first: $first, after: $after)
      @connection(key: "roster_users", filters: ["filter"]) {
      edges { node { id displayName provider { providerId } } }
      sources { providerId status code retryable retryAfterSeconds }
    }
  }
`;

graphql`
  query rosterFindQuery($providerIds: [ID!], $usernames: [String!], $title: String) {
    users(filter: { providerIds: $providerIds, usernames: $usernames }) { nodes { id } }
    courses(filter: { providerIds: $providerIds, search: $title }) { nodes { id } }
  }
`;

graphql`
  mutation rosterEnrollMutation($input: EnrollUserInput!) {
    enrollUser(input: $input) {
      __typename
      ... on EnrollUserPayload { created enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
`;

graphql`
  mutation rosterEndMutation($input: EndEnrollmentInput!) {
    endEnrollment(input: $input) {
      __typename
      ... on EndEnrollmentPayload { changed enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
`;

graphql`
  mutation rosterRefreshMutation($input: RefreshProviderInput!) {
    refreshProvider(input: $input) {
      __typename
      ... on ImportRequested { run { id state } }
      ... on ProviderRefused { code message }
    }
  }
`;

graphql`
  subscription rosterProgressSubscription($providerId: ID!) {
    importProgress(providerId: $providerId) { id state reading counts { kind read total } }
  }
`;
