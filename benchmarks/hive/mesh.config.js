// Composes one subgraph for each Canvas of CANVASES (names to URLs), one for the Campus at CAMPUS_URL, and
// one for the register at REGISTER_URL.
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

function campus(url, key) {
  const course = object("Course", { id, title: text, teacher_id: id });
  const user = object("User", { id, name: text });
  return loadJSONSchemaSubgraph("campus", {
    endpoint: url,
    operationHeaders: { Authorization: `Bearer ${key}` },
    operations: [
      {
        type: "Query",
        field: "courses",
        path: "/courses",
        method: "GET",
        responseSchema: { type: "array", items: course },
      },
      {
        type: "Query",
        field: "user",
        path: "/users/{args.userId}",
        method: "GET",
        argTypeMap: { userId: { type: "string" } },
        responseSchema: user,
      },
    ],
  });
}

const teacher = `
  extend type Course {
    teacher: User @resolveTo(
      sourceName: "campus", sourceTypeName: "Query", sourceFieldName: "user",
      requiredSelectionSet: "{ teacher_id }", sourceArgs: { userId: "{root.teacher_id}" }
    )
  }`;

function register(url, key) {
  const user = object("User", { id, name: text, username: text, email: text });
  const page = object("Users", { rows: { type: "array", items: user } });
  const enrollment = object("Enrollment", { id, course_id: id, role: text, state: text });
  const course = object("Course", { id, title: text, code: text });
  return loadJSONSchemaSubgraph("register", {
    endpoint: url,
    operationHeaders: { Authorization: `Bearer ${key}` },
    operations: [
      {
        type: "Query",
        field: "users",
        path: "/users?offset=0&limit={args.first}",
        method: "GET",
        argTypeMap: { first: { type: "integer" } },
        responseSchema: page,
      },
      {
        type: "Query",
        field: "enrollments",
        path: "/enrollments?user_ids={args.userId}",
        method: "GET",
        argTypeMap: { userId: { type: "string" } },
        responseSchema: { type: "array", items: enrollment },
      },
      {
        type: "Query",
        field: "courses",
        path: "/courses?ids={args.courseId}",
        method: "GET",
        argTypeMap: { courseId: { type: "string" } },
        responseSchema: { type: "array", items: course },
      },
    ],
  });
}

const places = `
  extend type User {
    enrollments: [Enrollment] @resolveTo(
      sourceName: "register", sourceTypeName: "Query", sourceFieldName: "enrollments",
      requiredSelectionSet: "{ id }", sourceArgs: { userId: "{root.id}" }
    )
  }
  extend type Enrollment {
    course: [Course] @resolveTo(
      sourceName: "register", sourceTypeName: "Query", sourceFieldName: "courses",
      requiredSelectionSet: "{ course_id }", sourceArgs: { courseId: "{root.course_id}" }
    )
  }`;

const canvases = JSON.parse(process.env.CANVASES ?? "{}");
const campusUrl = process.env.CAMPUS_URL;
const registerUrl = process.env.REGISTER_URL;

export const composeConfig = defineConfig({
  subgraphs: [
    ...Object.entries(canvases).map(([name, url]) => ({
      sourceHandler: canvas(name, url, process.env.CANVAS_TOKEN),
    })),
    ...(campusUrl ? [{ sourceHandler: campus(campusUrl, process.env.CAMPUS_KEY) }] : []),
    ...(registerUrl ? [{ sourceHandler: register(registerUrl, process.env.REGISTER_KEY) }] : []),
  ],
  additionalTypeDefs: [
    ...Object.keys(canvases).map(links),
    ...(campusUrl ? [teacher] : []),
    ...(registerUrl ? [places] : []),
  ].join("\n"),
});
