import inspect
from pathlib import Path

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
)
from pretend_roster import SCHEMA

from schema import build_schema, sdl
from schema.enums import ErrorCode
from sessions import errors

ROOTS = {"Query", "Mutation", "Subscription"}
REPOSITORY = Path(__file__).parents[2]


def own_types() -> list[GraphQLNamedType]:
    types = SCHEMA._schema.type_map.values()
    builtin = {"String", "Int", "Float", "Boolean", "ID"}
    return [kind for kind in types if not kind.name.startswith("__") and kind.name not in builtin]


def test_the_committed_schema_is_the_one_the_code_makes() -> None:
    committed = (REPOSITORY / "graphql" / "schema.graphql").read_text(encoding="utf-8")

    assert sdl() == committed, "run: learning-gateway schema > graphql/schema.graphql"


def test_every_type_field_argument_and_value_is_described() -> None:
    undescribed = []
    for kind in own_types():
        if not kind.description:
            undescribed.append(kind.name)
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for name, field in kind.fields.items():
                undescribed += [f"{kind.name}.{name}"] if not field.description else []
                undescribed += [
                    f"{kind.name}.{name}({argument})"
                    for argument, value in field.args.items()
                    if not value.description
                ]
        if isinstance(kind, GraphQLInputObjectType):
            undescribed += [
                f"{kind.name}.{name}"
                for name, field in kind.fields.items()
                if not field.description
            ]
        if isinstance(kind, GraphQLEnumType):
            undescribed += [
                f"{kind.name}.{name}"
                for name, value in kind.values.items()
                if not value.description
            ]

    assert undescribed == []


def test_no_object_has_an_async_resolver() -> None:
    found = [
        f"{kind.name}.{name}"
        for kind in own_types()
        if isinstance(kind, GraphQLObjectType) and kind.name not in ROOTS
        for name, field in kind.fields.items()
        if inspect.iscoroutinefunction(field.resolve)
        or inspect.iscoroutinefunction(strawberry_resolver(kind, name))
    ]

    assert found == []


def strawberry_resolver(kind: GraphQLObjectType, name: str) -> object:
    definition = kind.extensions["strawberry-definition"]
    field = next(
        field
        for field in definition.fields
        if SCHEMA.config.name_converter.from_field(field) == name
    )
    return None if field.base_resolver is None else field.base_resolver.wrapped_func


def test_every_list_of_rows_is_a_page_with_cursors() -> None:
    for name in ("UserConnection", "CourseConnection", "EnrollmentConnection"):
        kind = SCHEMA._schema.type_map[name]
        assert isinstance(kind, GraphQLObjectType)
        assert set(kind.fields) == {"totalCount", "nodes", "edges", "pageInfo", "sources"}


def test_fields_that_need_a_provider_can_be_null() -> None:
    nullable = ["user", "users", "course", "courses", "enrollments", "node", "provider"]
    query = SCHEMA._schema.query_type
    assert query is not None

    assert [name for name in nullable if str(query.fields[name].type).endswith("!")] == []
    for kind_name, fields in {
        "User": ["enrollments", "activity"],
        "Course": ["enrollments", "iconUrl", "icon", "sections"],
        "Enrollment": ["user", "course", "section", "milestones", "progress"],
        "Provider": ["sessions", "lastImport"],
    }.items():
        kind = SCHEMA._schema.type_map[kind_name]
        assert isinstance(kind, GraphQLObjectType)
        assert [name for name in fields if str(kind.fields[name].type).endswith("!")] == []


def test_every_error_of_a_provider_has_a_code_of_the_contract() -> None:
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ProviderError)
    }

    assert codes <= set(ErrorCode)


def test_a_schema_can_be_built_again_and_again() -> None:
    assert build_schema().as_str() == build_schema().as_str()
