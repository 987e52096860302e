"""One GraphQL request, from the decoded body to the answer."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    ExperimentalIncrementalExecutionResults,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    OperationType,
    create_source_event_stream,
    execute_subscription_event,
    get_operation_ast,
    parse,
)

from resolvers.context import RequestContext
from resolvers.errors import BadInput, QuotaExceeded, RequestRefused
from resolvers.operations import Operation, OperationKind
from schema.costs import CostModel, DocumentCosts
from schema.engine import Engine, Executed, Rows, Written
from schema.errors import formatted_errors, internal_error, refusal
from schema.incremental import Delivery, PartsExecutor, WholeExecutor
from schema.limits import DocumentLimits, check_document, check_text, check_variables
from schema.remembering import Asked, Prepared, Recall, Remembered, Repeated
from schema.spending import Spending
from schema.validation import validate
from schema.visibility import check_introspection, sees_schema, without_suggestion
from sessions.http import deadline
from sessions.metering import Meter, ProviderUsage, current_meter, metering
from sessions.strategies import Choice, listening

Answer: TypeAlias = tuple[int, dict[str, Any]]
"""HTTP status, and the response body of the GraphQL specification."""

_Executor: TypeAlias = WholeExecutor | PartsExecutor

_OK = 200
_BAD_REQUEST = 400
_UNPROCESSABLE = 422
_TOO_MANY_REQUESTS = 429
_METHOD_NOT_ALLOWED = 405
_INTERNAL_ERROR = 500
_MAX_CACHED_DOCUMENTS = 500
_MAX_CACHED_CHARACTERS = 500_000  # of all texts together; trees take a hundred bytes for each
_MAX_ERRORS = 8
_NOT_STREAMED = (
    "A subscription is answered as server-sent events: send it with Accept: text/event-stream"
)


class Shown(StrEnum):
    """What an administrator can be told of how a request was answered.

    STRATEGIES: which way providers were read, and what each way would have cost. UPSTREAM: what
    it cost each provider, from the calls to what was kept already. ENGINE: by which plan it was
    executed, or why by none. COST: what it was
    estimated at and came to; that is for any key.
    """

    STRATEGIES = "strategies"
    UPSTREAM = "upstream"
    ENGINE = "engine"
    COST = "cost"


class GatewaySchema(strawberry.Schema):
    """The schema, with what is remembered and allowed of documents."""

    def __init__(
        self, *args: Any, limits: DocumentLimits, remembered_bytes: int, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.documents = _Documents(
            self._schema, limits, CostModel(self._schema, max_cost=limits.max_cost)
        )
        self.engine = Engine(self._schema)
        self.remembered = Remembered(remembered_bytes)
        self.repeated = Repeated()


async def execute(
    schema: strawberry.Schema,
    body: Mapping[str, Any],
    context: RequestContext,
    *,
    queries_only: bool = False,
    shown: Collection[Shown] = (),
    rows: Rows = Rows.DICTS,
) -> Answer:
    """Answer one request.

    Args:
        schema: From ``build_schema``.
        body: The decoded request: ``query``, ``operationName``, ``variables``, ``extensions``.
        context: Made for this request; its batches are given up at the end.
        queries_only: Refuse mutations, as a GET must.
        shown: What to tell in the answer's extensions.
        rows: What the objects of the data are; structs are faster, and msgspec writes them.

    Returns:
        200 with data, perhaps partial; 400 without data when the document cannot be read, 422
        when it, a variable or the request is wrong otherwise; 405 for a mutation where only
        queries are allowed; 500 for a fault of ours. Nothing is raised but cancellation.
    """
    with context.watched() as watched, Spending(context) as spending, _listening(shown) as choices:
        try:
            begun = await _execute(
                schema,
                body,
                context,
                watched,
                spending,
                queries_only=queries_only,
                shown=shown,
                rows=rows,
                executor_class=WholeExecutor,
            )
            assert not isinstance(begun, Delivery)  # noqa: S101 - a ``WholeExecutor`` puts off nothing
            status, answer = begun
            watched.note_answer(answer)
            return status, _showing(spending.noted(answer), shown, choices, spending)
        except Exception as error:  # noqa: BLE001 - the mask: whatever it is, the caller sees an id only
            return _failure(error, context, watched, spending, shown, choices)
        finally:
            context.give_up()


async def execute_in_parts(
    schema: strawberry.Schema,
    body: Mapping[str, Any],
    context: RequestContext,
    *,
    queries_only: bool = False,
    shown: Collection[Shown] = (),
) -> AsyncGenerator[Answer, None]:
    """Yield the answer to one request, and then what its ``@defer`` and ``@stream`` put off.

    There are more answers than one exactly when the first has ``hasNext``; the last one, which has
    it false, tells what ``shown`` asks for. Arguments and statuses are those of ``execute``. All
    steps must be made in one ``contextvars.Context``.
    """
    delivery = None
    with context.watched() as watched, Spending(context) as spending, _listening(shown) as choices:
        try:
            begun = await _execute(
                schema,
                body,
                context,
                watched,
                spending,
                queries_only=queries_only,
                shown=shown,
                rows=Rows.DICTS,
                executor_class=PartsExecutor,
            )
            if isinstance(begun, Delivery):
                delivery = begun
                yield _OK, spending.noted(delivery.first())
                async for part in delivery.rest():
                    spending.noted(part)
                    if part["hasNext"]:
                        yield _OK, part
                    else:
                        watched.note_answer(delivery.told)
                        yield _OK, _showing(part, shown, choices, spending)
            else:
                status, answer = begun
                watched.note_answer(answer)
                yield status, _showing(spending.noted(answer), shown, choices, spending)
        except Exception as error:  # noqa: BLE001 - the same mask
            status, answer = _failure(error, context, watched, spending, shown, choices)
            if delivery is None:
                yield status, answer
            else:
                yield _OK, delivery.broken_off(answer["errors"])
        finally:
            if delivery is not None:
                await delivery.cancel()
            context.give_up()


async def subscribe(
    schema: strawberry.Schema,
    body: Mapping[str, Any],
    context: RequestContext,
    *,
    event_seconds: float,
    event_calls: int | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield an answer for each event of a subscription, or one that says why there are none.

    Args:
        schema: From ``build_schema``.
        body: As for ``execute``.
        context: Made for this request; each event begins with batches of its own.
        event_seconds: How long the answer to one event may wait for providers.
        event_calls: How many calls it may make to them; ``None`` for any number.
    """
    try:
        events = _events(
            schema, body, context, event_seconds=event_seconds, event_calls=event_calls
        )
        async with aclosing(events):
            async for answer in events:
                yield answer
    except RequestRefused as error:
        yield _unexecuted({"errors": [refusal(error)]}, body, context)
    except Exception as error:  # noqa: BLE001 - the mask, as in ``execute``
        cause = GraphQLError(str(error), original_error=error)
        yield _unexecuted({"errors": formatted_errors([cause], context)}, body, context)
    finally:
        context.give_up()


def explain(
    schema: strawberry.Schema,
    text: str,
    variables: Mapping[str, Any],
    operation_name: str | None,
    *,
    source: bool = False,
) -> str:
    """Return by which plan a document is executed, or why by none, for a person.

    Raises:
        BadInput: The document is wrong, or a variable.
        RequestLimitExceeded: It is larger than allowed.
    """
    document = _own(schema).documents.read(text)
    if document.errors:
        raise BadInput("query", "; ".join(error.message for error in document.errors))
    executor = WholeExecutor.build(
        schema._schema,  # noqa: SLF001 - as in ``_execute``
        document.node,
        raw_variable_values=dict(variables),
        operation_name=operation_name,
        operation_extensions={},
    )
    if isinstance(executor, list):
        raise BadInput("query", "; ".join(error.message for error in executor))
    plan = _own(schema).engine.plan(document.node, executor)
    if isinstance(plan, str):
        return f"No plan, graphql-core executes it: {plan}"
    return plan.explained(source=source)


def repeated_requests(schema: strawberry.Schema) -> Repeated:
    """Return the requests that were answered from memory."""
    return _own(schema).repeated


def is_subscription(schema: strawberry.Schema, body: Mapping[str, Any]) -> bool:
    """Whether a request is a subscription; not when it is wrong, which executing it will say."""
    try:
        _, operation = _read(schema, _request_of(body), None)
    except RequestRefused:
        return False
    return operation is not None and operation.operation is OperationType.SUBSCRIPTION


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    query: str
    operation_name: str | None
    variables: dict[str, Any]


def _listening(shown: Collection[Shown]) -> AbstractContextManager[Sequence[Choice]]:
    return listening() if shown else _NOBODY_LISTENS


_NOBODY_LISTENS: AbstractContextManager[Sequence[Choice]] = nullcontext(())


def _failure(
    error: Exception,
    context: RequestContext,
    watched: Operation,
    spending: Spending,
    shown: Collection[Shown],
    choices: Sequence[Choice],
) -> Answer:
    """Return the answer to what was refused, or went wrong in a way that nobody expected."""
    if not isinstance(error, RequestRefused):
        answer = {"errors": [internal_error(error, context)]}
        watched.note_answer(answer)
        return _INTERNAL_ERROR, answer
    answer = {"errors": [refusal(error)]}
    watched.note_answer(answer)
    status = _TOO_MANY_REQUESTS if isinstance(error, QuotaExceeded) else _UNPROCESSABLE
    return status, _showing(answer, {Shown.COST} & {*shown}, choices, spending)


async def _execute(
    schema: strawberry.Schema,
    body: Mapping[str, Any],
    context: RequestContext,
    watched: Operation,
    spending: Spending,
    *,
    queries_only: bool,
    shown: Collection[Shown],
    rows: Rows,
    executor_class: type[_Executor],
) -> Answer | Delivery:
    remembered = _own(schema).remembered
    may_be_remembered = rows is Rows.STRUCTS and not shown
    prepared = body.prepared if isinstance(body, Asked) and may_be_remembered else None
    recall = None if prepared is None else remembered.recall_prepared(prepared, context)
    if prepared is not None and recall is not None and (found := await recall.find()) is not None:
        return _repeated(prepared, found, watched, spending)
    request = _request_of(body)
    watched.document = request.query
    document, operation = _read(schema, request, context)
    if document.errors:
        status = _BAD_REQUEST if document.node is _NO_DOCUMENT else _UNPROCESSABLE
        return status, {"errors": [refusal(error) for error in document.errors]}
    _tell(watched, operation)
    if operation is None:
        raise BadInput("operationName", _which_operation(document.node, request.operation_name))
    if operation.operation is OperationType.SUBSCRIPTION:
        raise BadInput("query", _NOT_STREAMED)
    if queries_only and operation.operation is not OperationType.QUERY:
        error = BadInput("query", "Only queries can be sent by GET; send this by POST")
        return _METHOD_NOT_ALLOWED, {"errors": [refusal(error)]}
    spending.estimate(document.costs, operation, request.variables)
    spending.begin()
    recall = None
    if may_be_remembered and operation.operation is OperationType.QUERY:
        recall = remembered.recall(
            request.query, request.operation_name, request.variables, context
        )
        found = None if recall is None else await recall.find()
        if recall is not None and found is not None:
            if isinstance(body, Asked):
                body.prepared = Prepared(
                    key=recall.key,
                    kind=OperationKind.QUERY,
                    name=watched.name,
                    cost=spending.estimated,
                )
            watched.executed_by = "memory"
            return _OK, {"data": found}
    return await _carried_out(
        schema,
        request,
        document.node,
        context,
        watched,
        recall,
        shown=shown,
        rows=rows,
        executor_class=executor_class,
        is_query=operation.operation is OperationType.QUERY,
    )


def _repeated(prepared: Prepared, found: Written, watched: Operation, spending: Spending) -> Answer:
    """Answer what was asked before, as it was then; it is watched and charged as any other."""
    watched.document, watched.kind, watched.name = prepared.key[0], prepared.kind, prepared.name
    spending.estimated = prepared.cost
    spending.begin()
    watched.executed_by = "memory"
    return _OK, {"data": found}


async def _carried_out(
    schema: strawberry.Schema,
    request: _Request,
    document: DocumentNode,
    context: RequestContext,
    watched: Operation,
    recall: Recall | None,
    *,
    shown: Collection[Shown],
    rows: Rows,
    executor_class: type[_Executor],
    is_query: bool,
) -> Answer | Delivery:
    executor = executor_class.build(
        schema._schema,  # noqa: SLF001 - Strawberry offers no other way to a document parsed before
        document,
        context_value=context,
        raw_variable_values=request.variables,
        operation_name=request.operation_name,
        # Batches are made of what is begun together. A mutation begins them anew, though, and
        # what was begun early would be given up with the others.
        enable_early_execution=is_query,
        operation_extensions={},
        max_coercion_errors=_MAX_ERRORS,
    )
    if isinstance(executor, list):
        return _UNPROCESSABLE, {"errors": formatted_errors(executor, context)}
    try:
        executed = await _own(schema).engine.execute(document, executor, rows=rows)
    except asyncio.CancelledError:
        await executor.cancel_incremental_work()
        raise
    watched.executed_by = executed.fallback or "plan"
    if executed.plan is not None:
        del executor.async_helpers  # they hold it, so that only the garbage collector would end it
    if isinstance(executed.result, ExperimentalIncrementalExecutionResults):
        return Delivery(executed.result, executor, context)
    return await _told(executed, executed.result, context, recall, shown)


async def _told(
    executed: Executed,
    result: ExecutionResult,
    context: RequestContext,
    recall: Recall | None,
    shown: Collection[Shown],
) -> Answer:
    """Return the answer of an execution, and have it remembered if it can be given again."""
    status, answer = _answer(result, context)
    if Shown.ENGINE in shown:
        answer["extensions"] = {"engine": _execution(executed)}
    if recall is not None and executed.is_lasting and "errors" not in answer:
        answer["data"] = await recall.keep(answer["data"])
    return status, answer


async def _events(
    schema: strawberry.Schema,
    body: Mapping[str, Any],
    context: RequestContext,
    *,
    event_seconds: float,
    event_calls: int | None,
) -> AsyncGenerator[dict[str, Any], None]:
    request = _request_of(body)
    document, operation = _read(schema, request, context)
    if document.errors:
        answer = {"errors": [refusal(error) for error in document.errors]}
        yield _unexecuted(answer, body, context)
        return
    spending = Spending(context)
    if operation is not None:
        spending.estimate(document.costs, operation, request.variables)
    executor = WholeExecutor.build(
        schema._schema,  # noqa: SLF001 - as in ``_execute``
        document.node,
        context_value=context,
        raw_variable_values=request.variables,
        operation_name=request.operation_name,
        operation_extensions={},
        max_coercion_errors=_MAX_ERRORS,
    )
    if isinstance(executor, list):
        yield _unexecuted({"errors": formatted_errors(executor, context)}, body, context)
        return
    source = create_source_event_stream(executor)
    if inspect.isawaitable(source):
        source = await source
    if isinstance(source, ExecutionResult):
        yield _unexecuted(_answer(source, context)[1], body, context)
        return
    assert isinstance(source, AsyncGenerator)  # noqa: S101 - as every field of Subscription is
    async with aclosing(source):
        async for event in source:
            spending = spending.again()
            meter = Meter(max_calls=event_calls)
            watching = context.watched()
            with metering(meter), watching as watched, spending, deadline(event_seconds):
                watched.document = request.query
                _tell(watched, operation)
                spending.begin()
                result = execute_subscription_event(executor.build_per_event_executor(event))
                if inspect.isawaitable(result):
                    result = await result
                _, answer = _answer(result, context)
                watched.note_answer(spending.noted(answer))
            yield answer
            context.failures.clear()
            context.forget_loaded()


def _read(
    schema: strawberry.Schema, request: _Request, context: RequestContext | None
) -> tuple[_Read, OperationDefinitionNode | None]:
    """Return the document, with what is wrong with it, and the operation that is meant.

    Raises:
        RequestLimitExceeded: The document, or what comes in variables, is larger than allowed.
        Forbidden: It asks for the schema, which the caller is not shown.
    """
    documents = _own(schema).documents
    document = documents.read(request.query)
    check_variables(request.variables, documents.limits)
    if context is not None and not sees_schema(context.access):
        check_introspection(request.query, context.access)
        errors = [*map(without_suggestion, document.errors)]
        document = _Read(document.node, document.costs, errors)
    return document, get_operation_ast(document.node, request.operation_name)


def _own(schema: strawberry.Schema) -> GatewaySchema:
    if not isinstance(schema, GatewaySchema):
        raise TypeError("The schema comes from build_schema")
    return schema


def _unexecuted(
    answer: dict[str, Any], body: Mapping[str, Any], context: RequestContext
) -> dict[str, Any]:
    """Tell whoever watches of a subscription that did not begin, and return the answer to it."""
    with context.watched() as watched:
        text = body.get("query")
        watched.document = text if isinstance(text, str) else ""
        watched.note_answer(answer)
    return answer


def _tell(watched: Operation, operation: OperationDefinitionNode | None) -> None:
    """Tell whoever watches which operation it is."""
    if operation is not None:
        watched.kind = _KINDS[operation.operation]
        watched.name = None if operation.name is None else operation.name.value


_KINDS = {kind: OperationKind(kind.value) for kind in OperationType}


def _answer(result: ExecutionResult, context: RequestContext) -> Answer:
    errors = formatted_errors(result.errors, context)
    if result.data is None and not any("path" in error for error in errors):
        return _UNPROCESSABLE, {"errors": errors}  # nothing was executed: a variable is wrong
    answer: dict[str, Any] = {"data": result.data}
    if errors:
        answer["errors"] = errors
    return _OK, answer


def _showing(
    answer: dict[str, Any],
    shown: Collection[Shown],
    choices: Sequence[Choice],
    spending: Spending,
) -> dict[str, Any]:
    if not shown:
        return answer
    extensions = answer.get("extensions", {}) | _extensions(shown, choices, spending)
    return {**answer, "extensions": extensions}


def _extensions(
    shown: Collection[Shown], choices: Sequence[Choice], spending: Spending
) -> dict[str, Any]:
    extensions: dict[str, Any] = {}
    if Shown.COST in shown:
        extensions["cost"] = spending.told()
    if Shown.STRATEGIES in shown:
        extensions["strategies"] = [*map(_strategy, choices)]
    if Shown.UPSTREAM in shown and (meter := current_meter()) is not None:
        extensions["upstream"] = [
            _usage(provider_id, usage) for provider_id, usage in meter.usage_by_provider.items()
        ]
    return extensions


def _execution(executed: Executed) -> dict[str, Any]:
    return {
        "by": executed.fallback or "plan",
        "redone": executed.redone,
        "plan": None if executed.plan is None else executed.plan.explained().splitlines(),
    }


def _usage(provider_id: str, usage: ProviderUsage) -> dict[str, Any]:
    return {
        "providerId": provider_id,
        "calls": usage.calls,
        "waitedSeconds": round(usage.waited_seconds, 6),
        "upstreamSeconds": round(usage.upstream_seconds, 6),
        "bytes": usage.body_bytes,
        "cacheHits": usage.cache_hits,
        "staleHits": usage.cache_stale,
        "shared": usage.shared,
    }


def _strategy(choice: Choice) -> dict[str, Any]:
    return {
        "providerId": choice.provider_id,
        "subject": choice.subject,
        "wanted": choice.wanted,
        "keys": choice.keys,
        "chosen": choice.chosen,
        "callsByStrategy": dict(choice.calls_by_strategy),
        "reason": choice.reason,
    }


def _request_of(body: Mapping[str, Any]) -> _Request:
    query = body.get("query")
    if not isinstance(query, str) or not query.strip():
        raise BadInput("query", "A GraphQL document is needed here, as a string")
    operation_name = body.get("operationName")
    if operation_name is not None and not isinstance(operation_name, str):
        raise BadInput("operationName", "A name is needed here, as a string")
    for name in ("variables", "extensions"):
        given = body.get(name)
        # PHP writes an empty object as an empty list.
        if given is not None and given != [] and not isinstance(given, Mapping):
            raise BadInput(name, "An object is needed here")
    return _Request(
        query=query,
        operation_name=operation_name or None,
        variables=dict(body.get("variables") or {}),
    )


def _which_operation(document: DocumentNode, name: str | None) -> str:
    names = [
        definition.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode) and definition.name is not None
    ]
    if name is None:
        return "The document holds several operations; name one of them"
    return (
        f"The document has no operation of that name, only {', '.join(names) or 'an unnamed one'}"
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A document that was read: its tree, or what is wrong with it."""

    node: DocumentNode
    costs: DocumentCosts
    errors: Sequence[GraphQLError] = ()


_NO_DOCUMENT = DocumentNode(definitions=())


def _loosen(node: DocumentNode) -> None:
    """Let a document's tokens hold each other in one direction only.

    Then the document goes when nobody holds it, and not when the garbage collector has come by
    often enough to look at what is old. Nothing reads tokens backwards.
    """
    token = node.loc.start_token if node.loc is not None else None
    while token is not None:
        token.prev = None
        token = token.next


@dataclass(slots=True)
class _Documents:
    """Documents parsed, limited and validated, the most recently used ones remembered."""

    schema: GraphQLSchema
    limits: DocumentLimits
    model: CostModel
    _read: OrderedDict[str, _Read] = field(default_factory=OrderedDict)
    _characters: int = 0

    def read(self, text: str) -> _Read:
        """Return the document, or what is wrong with it.

        Raises:
            RequestLimitExceeded: It is larger than allowed.
        """
        found = self._read.get(text)
        if found is not None:
            self._read.move_to_end(text)
            return found
        found = self._read[text] = self._parsed(text)
        self._characters += len(text)
        while len(self._read) > _MAX_CACHED_DOCUMENTS or self._characters > _MAX_CACHED_CHARACTERS:
            oldest, _ = self._read.popitem(last=False)
            self._characters -= len(oldest)
        return found

    def _parsed(self, text: str) -> _Read:
        check_text(text, self.limits)
        try:
            node = parse(text, max_tokens=self.limits.max_tokens)
        except GraphQLSyntaxError as error:
            return _Read(_NO_DOCUMENT, DocumentCosts(self.model, _NO_DOCUMENT), (error,))
        _loosen(node)
        check_document(node, self.limits)
        errors = validate(self.schema, node, max_errors=_MAX_ERRORS)
        return _Read(node, DocumentCosts(self.model, node), errors)
