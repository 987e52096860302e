"""The entry: which operations a plan covers, and the plans that are kept."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from graphql import (
    DirectiveNode,
    DocumentNode,
    ExecutionResult,
    ExperimentalIncrementalExecutionResults,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLSchema,
    NonNullTypeNode,
    OperationDefinitionNode,
    OperationType,
    SelectionNode,
    SelectionSetNode,
    VariableNode,
)
from graphql.execution import Executor

from schema.engine.plans import Plan, Rows
from schema.engine.running import Execution

_MAX_PLANS: Final = 500
_CONDITIONS: Final = frozenset({"skip", "include"})
_INTROSPECTION: Final = frozenset({"__schema", "__type"})


@dataclass(frozen=True, slots=True)
class Executed:
    """An answer, and how it was come by.

    Attributes:
        result: As graphql-core's.
        fallback: Why graphql-core executed it; empty when a plan did.
        redone: For how many objects the fast way met something unexpected.
        plan: What executed it.
    """

    result: ExecutionResult | ExperimentalIncrementalExecutionResults
    fallback: str = ""
    redone: int = 0
    plan: Plan | None = None

    @property
    def is_lasting(self) -> bool:
        """Whether the same comes of it while nothing that it reads has changed."""
        return self.plan is not None and self.plan.is_lasting


@dataclass(slots=True)
class Engine:
    """Executes the documents of one schema.

    Attributes:
        schema: What graphql-core executes.
        max_plans: How many plans are kept, those used last.
    """

    schema: GraphQLSchema
    max_plans: int = _MAX_PLANS
    _covered: OrderedDict[tuple[int, int], _Coverage] = field(default_factory=OrderedDict)
    _plans: OrderedDict[tuple[object, ...], Plan] = field(default_factory=OrderedDict)

    async def execute(
        self, document: DocumentNode, executor: Executor[Any], *, rows: Rows = Rows.DICTS
    ) -> Executed:
        """Execute an operation of a validated document.

        Args:
            document: Kept while its plan is: a document that is executed again is the same object.
            executor: Built of the document by graphql-core. It executes what no plan covers, and
                makes what resolvers are told.
            rows: What the answer's objects are; structs are faster, and good for msgspec alone.
        """
        coverage = self._coverage(document, executor.operation)
        if coverage.fallback:
            result = executor.execute_operation()
            if inspect.isawaitable(result):
                result = await result
            return Executed(result, coverage.fallback)
        plan = self._plan(coverage, executor, rows)
        execution = Execution(plan, executor)
        return Executed(await execution.result(), redone=execution.redone, plan=plan)

    def plan(self, document: DocumentNode, executor: Executor[Any]) -> Plan | str:
        """Return the whole plan of an operation, or why there is none."""
        coverage = self._coverage(document, executor.operation)
        if coverage.fallback:
            return coverage.fallback
        plan = self._plan(coverage, executor, Rows.DICTS)
        plan.complete(executor)
        return plan

    def _coverage(self, document: DocumentNode, operation: OperationDefinitionNode) -> _Coverage:
        key = (id(document), id(operation))
        coverage = self._covered.get(key)
        if coverage is None:
            coverage = _coverage_of(document, operation)
            self._covered[key] = coverage
            if len(self._covered) > self.max_plans:
                self._covered.popitem(last=False)
        else:
            self._covered.move_to_end(key)
        return coverage

    def _plan(self, coverage: _Coverage, executor: Executor[Any], rows: Rows) -> Plan:
        coerced = executor.variable_values.coerced
        truths = tuple(bool(coerced.get(name)) for name in coverage.conditions)
        key = (id(coverage.document), id(coverage.operation), truths, rows)
        plan = self._plans.get(key)
        if plan is None:
            plan = Plan(self.schema, coverage.document, executor, rows)
            self._plans[key] = plan
            if len(self._plans) > self.max_plans:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan


@dataclass(frozen=True, slots=True)
class _Coverage:
    """Whether a plan covers an operation.

    Attributes:
        document: Held, so that no other takes its identity.
        operation: The one that is executed.
        fallback: Why not, or empty.
        conditions: The variables that decide which fields there are.
    """

    document: DocumentNode
    operation: OperationDefinitionNode
    fallback: str = ""
    conditions: tuple[str, ...] = ()


def _coverage_of(document: DocumentNode, operation: OperationDefinitionNode) -> _Coverage:
    fallback = _uncovered_definition(document, operation)
    conditions: set[str] = set()
    always = {
        definition.variable.name.value
        for definition in operation.variable_definitions or ()
        if isinstance(definition.type, NonNullTypeNode)
    }
    for selection in _selections(document, operation):
        if isinstance(selection, FieldNode) and selection.name.value in _INTROSPECTION:
            fallback = fallback or "introspection"
        for directive in selection.directives or ():
            condition = _condition_of(directive)
            if directive.name.value not in _CONDITIONS:
                fallback = fallback or f"@{directive.name.value}"
            elif condition is not None and condition not in always:
                fallback = fallback or "a condition that may be null"
            elif condition is not None:
                conditions.add(condition)
    return _Coverage(document, operation, fallback, tuple(sorted(conditions)))


def _uncovered_definition(document: DocumentNode, operation: OperationDefinitionNode) -> str:
    """Return what about the definitions no plan covers; empty when there is nothing."""
    if operation.operation is not OperationType.QUERY:
        return str(operation.operation.value)
    if operation.directives:
        return "a directive on the operation"
    if any(
        isinstance(definition, FragmentDefinitionNode)
        and (definition.variable_definitions or definition.directives)
        for definition in document.definitions
    ):
        return "a fragment with variables or directives"
    return ""


def _condition_of(directive: DirectiveNode) -> str | None:
    """Return the variable that decides, if one does."""
    for argument in directive.arguments or ():
        if isinstance(argument.value, VariableNode):
            return argument.value.name.value
    return None


def _selections(
    document: DocumentNode, operation: OperationDefinitionNode
) -> Iterator[SelectionNode]:
    """Yield every selection of an operation and of the document's fragments, once each."""
    waiting: list[SelectionSetNode] = [operation.selection_set]
    waiting.extend(
        definition.selection_set
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    )
    while waiting:
        for selection in waiting.pop().selections:
            yield selection
            below = getattr(selection, "selection_set", None)
            if below is not None:
                waiting.append(below)
