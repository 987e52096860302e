"""Files of documents, as clients' tools write them.

A file that ends in ``.json`` holds documents by their hash, as relay-compiler (``persisted.json``)
and GraphQL Code Generator's client preset (``persisted-documents.json``) write it. Any other file,
and all ``.graphql`` and ``.gql`` files of a folder and the folders in it, holds operations and
fragments: each operation becomes a document, with the fragments it needs from all of these files.

Source:
    https://relay.dev/docs/guides/persisted-queries/#local-persisted-queries
    https://the-guild.dev/graphql/codegen/plugins/presets/preset-client#persisted-documents
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from graphql import (
    DefinitionNode,
    DocumentNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLSyntaxError,
    Node,
    OperationDefinitionNode,
    Source,
    Visitor,
    parse,
    print_ast,
    visit,
)

from gateway.documents import document_hash, parse_document_id

_SUFFIXES: Final = frozenset({".graphql", ".gql"})
_EXECUTABLE: Final = (OperationDefinitionNode, FragmentDefinitionNode)


class DocumentsUnusable(Exception):
    """Files of documents cannot be used; every line of the message names a place and a problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDocument:
    """A document that was found in a file.

    Attributes:
        id: Hash of the text, in hex.
        text: As clients send it.
        names: Of its operations.
        node: The text, parsed; nodes tell the file and the line they come from.
    """

    id: str
    text: str
    names: tuple[str, ...]
    node: DocumentNode


def read_documents(path: Path) -> Sequence[FoundDocument]:
    """Return the documents of a file or folder.

    Raises:
        DocumentsUnusable: It cannot be read, or is not what its name says, or holds no operation.
    """
    problems: list[str] = []
    if path.suffix == ".json" and not path.is_dir():
        found = [*_of_manifest(path, problems)]
    else:
        files = sorted(_files_in(path)) if path.is_dir() else [path]
        found = [*_of_files(files, problems)]
    if not found and not problems:
        problems.append(f"{path}: It holds no operations")
    if problems:
        raise DocumentsUnusable(problems)
    return [*{document.id: document for document in found}.values()]


def parse_document(text: str, *, place: str) -> DocumentNode:
    """Return a document whose nodes tell where they come from.

    Raises:
        DocumentsUnusable: It is none, or cannot be kept.
    """
    if "\0" in text:  # PostgreSQL keeps any character but this
        raise DocumentsUnusable([f"{place}: It holds the character U+0000"])
    try:
        return parse(Source(text, place))
    except GraphQLSyntaxError as error:
        where = "".join(f":{at.line}:{at.column}" for at in error.locations or ())
        raise DocumentsUnusable([f"{place}{where}: {error.message}"]) from None


def _of_manifest(path: Path, problems: list[str]) -> Iterator[FoundDocument]:
    try:
        texts = msgspec.json.decode(_text_of(path), type=dict[str, str])
    except msgspec.MsgspecError as error:
        problems.append(f"{path}: It is no JSON object of documents by hash: {error}")
        return
    for key, text in texts.items():
        try:
            yield _listed(key, text, place=f"{path}[{key}]")
        except DocumentsUnusable as error:
            problems += error.problems


def _listed(key: str, text: str, *, place: str) -> FoundDocument:
    sha = parse_document_id(key)
    if sha is None:
        raise DocumentsUnusable([f"{place}: This is no hash; MD5, SHA-1 and SHA-256 are known"])
    if document_hash(text, digits=len(sha)) != sha:
        raise DocumentsUnusable([f"{place}: This is not the hash of its document"])
    node = parse_document(text, place=place)
    names = _names(node)
    if names is None:
        raise DocumentsUnusable([f"{place}: It holds no operation"])
    return FoundDocument(id=sha, text=text, names=names, node=node)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise DocumentsUnusable([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise DocumentsUnusable([f"{path}: Byte {error.start} is not UTF-8"]) from None


def _files_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        folders = path.relative_to(folder).parts[:-1]
        is_ours = not any(name == "node_modules" or name.startswith(".") for name in folders)
        if is_ours and path.suffix in _SUFFIXES and path.is_file():
            yield path


def _of_files(files: Iterable[Path], problems: list[str]) -> Iterator[FoundDocument]:
    texts: dict[str, str] = {}
    nodes: dict[str, DocumentNode] = {}
    for path in files:
        place = str(path)
        try:
            text = _text_of(path)
            node = parse_document(text, place=place)
        except DocumentsUnusable as error:
            problems += error.problems
        else:
            if any(isinstance(definition, _EXECUTABLE) for definition in node.definitions):
                texts[place], nodes[place] = text, node
    fragments = _fragments(nodes, problems)
    if problems:
        return
    for name, node in nodes.items():
        for definition in node.definitions:
            if isinstance(definition, OperationDefinitionNode):
                parts = [definition, *_needed(definition, fragments)]
                yield _assembled(parts, whole=node, text=texts[name])


def _fragments(
    nodes: Mapping[str, DocumentNode], problems: list[str]
) -> Mapping[str, FragmentDefinitionNode]:
    fragments: dict[str, FragmentDefinitionNode] = {}
    places: dict[str, str] = {}
    for place, node in nodes.items():
        for definition in node.definitions:
            if isinstance(definition, FragmentDefinitionNode):
                name = definition.name.value
                if name in fragments:
                    problems.append(f"{place}: The fragment {name} is in {places[name]} already")
                fragments[name], places[name] = definition, place
    return fragments


def _needed(
    operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]
) -> Sequence[FragmentDefinitionNode]:
    """Return the fragments an operation needs, by name; those there are not are left out."""
    needed: dict[str, FragmentDefinitionNode] = {}
    waiting: list[Node] = [operation]
    while waiting:
        for name in _spreads(waiting.pop()):
            if name in fragments and name not in needed:
                needed[name] = fragments[name]
                waiting.append(fragments[name])
    return [needed[name] for name in sorted(needed)]


def _spreads(node: Node) -> Iterable[str]:
    names: dict[str, None] = {}

    class Spreads(Visitor):
        def enter_fragment_spread(self, spread: FragmentSpreadNode, *_: object) -> None:
            names[spread.name.value] = None

    visit(node, Spreads())
    return names


def _assembled(parts: Sequence[DefinitionNode], *, whole: DocumentNode, text: str) -> FoundDocument:
    """Return an operation with its fragments: the file as it stands, if they are all it holds."""
    if len(parts) != len(whole.definitions) or any(part not in whole.definitions for part in parts):
        text = "\n\n".join(map(print_ast, parts)) + "\n"
    node = DocumentNode(definitions=tuple(parts))
    sha = document_hash(text)
    assert sha is not None  # noqa: S101 - there is a SHA-256 of every text
    return FoundDocument(id=sha, text=text, names=_names(node) or (), node=node)


def _names(node: DocumentNode) -> tuple[str, ...] | None:
    """Return the names of the operations that have one; ``None`` when there are no operations."""
    operations = [one for one in node.definitions if isinstance(one, OperationDefinitionNode)]
    if not operations:
        return None
    return tuple(one.name.value for one in operations if one.name is not None)
