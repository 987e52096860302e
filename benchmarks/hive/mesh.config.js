// Composes one subgraph for each Canvas of CANVASES (names to URLs), and one for the Campus at CAMPUS_URL.
import { defineConfig } from "@graphql-mesh/compose-cli";
import { loadJSONSchemaSubgraph } from "@omnigraph/json-schema";

const id = { type: "string" };
const text = { type: "string" };

function object(title, properties) {
  return { type: "object", title, properties };
}

function canvas(name, url, token) {
  const user = object(`User_${name}`, { id, name: text });
  const enrollment = object(`Enrollment_${name}`, { id, user_id: id, course_id: id, type: text });
  const course = object(`Course_${name}`, { id, name: text });
  return loadJSONSchemaSubgraph(name, {
    endpoint: `${url}/api/v1`,
    operationHeaders: {
      Authorization: `Bearer ${token}`,
      Accept: "application/json+canvas-string-ids, application/json",
    },
    operations: [
      {
        type: "Query",
        field: `users_${name}`,
        path: "/accounts/self/users?per_page=100&sort=id",
        method: "GET",
        responseSchema: { type: "array", items: user },
      },
      {
        type: "Query",
        field: `enrollments_${name}`,
        path: "/users/{args.userId}/enrollments?per_page=100&state[]=active&state[]=completed",
        method: "GET",
        argTypeMap: { userId: { type: "string" } },
        responseSchema: { type: "array", items: enrollment },
      },
      {
        type: "Query",
        field: `course_${name}`,
        path: "/courses/{args.courseId}",
        method: "GET",
        argTypeMap: { courseId: { type: "string" } },
        responseSchema: course,
      },
    ],
  });
}

function links(name) {
  return `
    extend type User_${name} {
      enrollments: [Enrollment_${name}] @resolveTo(
        sourceName: "${name}", sourceTypeName: "Query", sourceFieldName: "enrollments_${name}",
        requiredSelectionSet: "{ id }", sourceArgs: { userId: "{root.id}" }
      )
    }
    extend type Enrollment_${name} {
      course: Course_${name} @resolveTo(
        sourceName: "${name}", sourceTypeName: "Query", sourceFieldName: "course_${name}",
        requiredSelectionSet: "{ course_id }", sourceArgs: { courseId: "{root.course_id}" }
      )
    }`;
}

const providers = JSON.parse(process.env.CANVASES ?? "{}");
const token = process.env.CANVAS_TOKEN;

export const composeConfig = defineConfig({
  subgraphs: Object.entries(providers).map(([name, url]) => ({
    sourceHandler: canvas(name, url, token),
  })),
  additionalTypeDefs: Object.keys(providers).map(links).join("\n"),
});
