import asyncio
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from graphql import parse, print_ast
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access import KeyAccess
from gateway.documents import (
    DocumentNotFound,
    DocumentNotTrusted,
    Documents,
    PersistedQueryNotFound,
    document_hash,
    open_documents,
    parse_document_id,
)
from gateway.manifests import DocumentsUnusable, read_documents
from resolvers.errors import BadInput
from simulators.moving_time import moving_time
from storage.database import open_database
from storage.documents import DocumentDraft, DocumentStore
from storage.errors import StorageUnavailable

CALLER = KeyAccess(key_id="caller", scopes=frozenset({"read:users"}))
ADMIN = KeyAccess(key_id="admin", scopes=frozenset({"admin"}))
ALGORITHMS = ("md5", "sha1", "sha256")
QUERY = "{ providers { id } }"

# What a document may hold besides its operation: any text, in a comment.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=80).map(
    lambda comment: f"query Q {{ __typename }} #{comment}"
)


def digest(text: str, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, text.encode()).hexdigest()


def automatic(sha256: object, *, version: object = 1) -> dict[str, Any]:
    return {"extensions": {"persistedQuery": {"version": version, "sha256Hash": sha256}}}


def documents(store: DocumentStore, **terms: Any) -> Documents:
    return Documents(store, **{"trusted_only": False, "max_document_bytes": 1000, **terms})


@pytest.fixture
def store(sqlite_database: Any) -> DocumentStore:
    return DocumentStore(sqlite_database)


# Hashes.


@given(text=TEXTS, algorithm=st.sampled_from(ALGORITHMS), before=st.sampled_from(["", "sha256:"]))
def test_the_hash_of_any_text_is_recognised_by_its_length(
    text: str, algorithm: str, before: str
) -> None:
    sha = digest(text, algorithm)

    assert document_hash(text, digits=len(sha)) == sha
    assert parse_document_id(before + sha) == (sha if not before or len(sha) == 64 else None)


@given(st.text(max_size=80) | st.from_regex(r"(sha256:|md5:)?[0-9a-fA-F]{0,70}\n?", fullmatch=True))
def test_nothing_else_is_taken_for_a_hash(text: str) -> None:
    bare = text.removeprefix("sha256:")
    is_hash = set(bare) <= set("0123456789abcdef") and (
        len(bare) == 64 or (len(bare) in {32, 40} and bare == text)
    )

    assert parse_document_id(text) == (bare if is_hash else None)


# Manifests.


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5, unique=True),
    algorithm=st.sampled_from(ALGORITHMS),
    before=st.sampled_from(["", "sha256:"]),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_registered_comes_back_to_the_letter_for_its_hash_and_for_no_other(
    migrated_file: Path, texts: list[str], algorithm: str, before: str
) -> None:
    before = before if algorithm == "sha256" else ""
    manifest = {before + digest(text, algorithm): text for text in texts}

    async def register_and_ask(folder: Path) -> None:
        shutil.copyfile(migrated_file, folder / "gateway.db")
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        found = read_documents(folder / "manifest.json")
        async with open_database(f"sqlite:///{folder}/gateway.db") as database:
            store = DocumentStore(database)
            drafts = [DocumentDraft(id=one.id, text=one.text, names=one.names) for one in found]
            assert await store.register(drafts, client="web") == len(texts)
            asked = documents(store, trusted_only=True)
            for key, text in manifest.items():
                for given_id in (key, f"sha256:{digest(text)}"):
                    assert await asked.resolve({"documentId": given_id}, CALLER) == {
                        "documentId": given_id,
                        "query": text,
                    }
                assert await asked.resolve({"query": text}, CALLER) == {"query": text}
                with pytest.raises(DocumentNotTrusted):
                    await asked.resolve({"query": text + " "}, CALLER)
                with pytest.raises(DocumentNotFound):
                    await asked.resolve({"documentId": digest(text + " ", algorithm)}, CALLER)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(register_and_ask(Path(folder)))


@given(text=TEXTS, other=TEXTS, algorithm=st.sampled_from(ALGORITHMS))
def test_a_hash_of_another_text_is_never_taken(text: str, other: str, algorithm: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(msgspec.json.encode({digest(other, algorithm): text}))
        if text == other:
            assert [found.text for found in read_documents(path)] == [text]
        else:
            with pytest.raises(DocumentsUnusable, match="not the hash of its document"):
                read_documents(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "Expected `object`, got `array`"),
        ('{"a":1}', "Expected `str`, got `int`"),
        ("{", "Input data was truncated"),
        ('{"users":"{ x }"}', "[users]: This is no hash; MD5, SHA-1 and SHA-256 are known"),
        ("{}", "manifest.json: It holds no operations"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")

    with pytest.raises(DocumentsUnusable) as caught:
        read_documents(tmp_path / "manifest.json")

    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("query {", ":1:8: Syntax Error: Expected Name, found <EOF>."),
        ("fragment F on User { id }", ": It holds no operation"),
        ("query Q { a } #\0", ": It holds the character U+0000"),
    ],
)
def test_what_is_wrong_with_a_document_is_said_with_its_place(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(msgspec.json.encode({digest(text): text}))

    with pytest.raises(DocumentsUnusable) as caught:
        read_documents(path)

    assert caught.value.problems == [f"{path}[{digest(text)}]{problem}"]


# Folders.


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.graphql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_file_with_one_operation_and_what_it_needs_is_the_document_as_it_stands(
    tmp_path: Path,
) -> None:
    text = "# why\nquery Q { ...F }\nfragment F on Query { __typename }\n"
    write(tmp_path, whole=text, schema="type Query { a: Int }")
    write(tmp_path / "node_modules", other="query Other { a }")
    write(tmp_path / "deep" / ".cache", other="query Other { a }")

    (found,) = read_documents(tmp_path)

    assert (found.id, found.text, found.names) == (digest(text), text, ("Q",))


def test_an_operation_takes_the_fragments_it_needs_from_the_whole_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        operations="query A { ...One }\nquery B { ...Two }\n{ __typename }",
        deep__one="fragment One on Query { ...Two }",
        deep__two="fragment Two on Query { __typename ...One }\nfragment Unused on Query { id }",
    )

    found = {document.names: document.text for document in read_documents(tmp_path)}

    def printed(*parts: str) -> str:
        return "\n\n".join(print_ast(parse(part)) for part in parts) + "\n"

    one, two = "fragment One on Query { ...Two }", "fragment Two on Query { __typename ...One }"
    assert found == {
        ("A",): printed("query A { ...One }", one, two),
        ("B",): printed("query B { ...Two }", one, two),
        (): printed("{ __typename }"),
    }


def test_every_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    write(tmp_path, a="fragment F on Query { id }", b="fragment F on Query { id }\nquery Q {id}")
    twice = tmp_path / "b.graphql"
    with pytest.raises(DocumentsUnusable) as duplicate:
        read_documents(tmp_path)
    write(tmp_path, c="query {", d="{ x }")
    (tmp_path / "d.graphql").write_bytes(b"{ \xff }")
    with pytest.raises(DocumentsUnusable) as unreadable:
        read_documents(tmp_path)

    assert f"{twice}: The fragment F is in {tmp_path / 'a.graphql'} already" in str(duplicate.value)
    assert f"{tmp_path / 'c.graphql'}:1:8: Syntax Error" in str(unreadable.value)
    assert f"{tmp_path / 'd.graphql'}: Byte 2 is not UTF-8" in str(unreadable.value)


# Requests.


async def test_a_request_without_a_hash_asks_the_database_nothing(store: DocumentStore) -> None:
    body: dict[str, Any] = {"query": QUERY, "extensions": [], "documentId": None}

    resolved = await documents(store).resolve(body, CALLER)

    assert resolved is body


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"documentId": "users"}, "documentId: The hash of a document is needed here"),
        ({"documentId": 7}, "documentId: The hash of a document is needed here"),
        ({"doc_id": "sha256:" + "a" * 32}, "doc_id: The hash of a document"),
        ({"id": "A" * 64}, "id: The hash of a document"),
        ({"documentId": "a" * 64, "id": "b" * 32}, "documentId and id: They name different"),
        ({"extensions": {"persistedQuery": []}}, "extensions.persistedQuery: An object"),
        (automatic("a" * 64, version=2), "extensions.persistedQuery.version: There is version 1"),
        (automatic("a" * 64, version=True), "extensions.persistedQuery.version: There is"),
        (automatic("a" * 64, version="1"), "extensions.persistedQuery.version: There is"),
        (automatic("a" * 40), "extensions.persistedQuery.sha256Hash: A SHA-256 is needed"),
        (automatic(None), "extensions.persistedQuery.sha256Hash: A SHA-256 is needed"),
        ({"query": QUERY, "id": "a" * 32}, "id: It is not the hash of the document sent with"),
        ({"query": QUERY, **automatic("a" * 64)}, "sha256Hash: It is not the hash of the doc"),
    ],
)
async def test_a_wrong_hash_is_refused_with_its_place(
    store: DocumentStore, body: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput) as caught:
        await documents(store).resolve(body, CALLER)

    assert problem in caught.value.message


@given(text=st.text(max_size=40), sent_with=st.text(max_size=40))
async def test_a_document_is_remembered_by_its_own_hash_only(text: str, sent_with: str) -> None:
    asked = documents(_Nothing())
    body: dict[str, Any] = {"query": text or "x", **automatic(document_hash(sent_with or "x"))}

    if (text or "x") == (sent_with or "x"):
        await asked.resolve(body, CALLER)
        del body["query"]
        assert (await asked.resolve(body, CALLER))["query"] == (text or "x")
    else:
        with pytest.raises(BadInput):
            await asked.resolve(body, CALLER)
        del body["query"]
        with pytest.raises(PersistedQueryNotFound):
            await asked.resolve(body, CALLER)


@given(st.lists(st.text(min_size=1, max_size=300), max_size=60))
async def test_automatic_documents_never_take_more_memory_than_allowed(texts: list[str]) -> None:
    most, largest = 5000, 400
    asked = documents(_Nothing(), max_bytes=most, max_document_bytes=largest)

    for text in texts:
        await asked.resolve({"query": text, **automatic(document_hash(text))}, CALLER)

    kept = asked._automatic._texts
    sizes = [sys.getsizeof(key) + sys.getsizeof(text) for key, text in kept.items()]
    assert sum(sizes) <= most
    assert all(len(text.encode()) <= largest for text in kept.values())
    if texts and len(texts[-1].encode()) <= largest:
        assert next(reversed(kept.values())) == texts[-1]


async def test_the_automatic_document_used_longest_ago_is_forgotten_first() -> None:
    asked = documents(_Nothing(), max_bytes=1400)
    texts = [f"{{ field{number} }}" for number in range(4)]

    async def send(text: str, **more: Any) -> Any:
        return await asked.resolve({**automatic(digest(text)), **more}, CALLER)

    for text in texts[:3]:
        await send(text, query=text)
    await send(texts[0])
    await send(texts[3], query=texts[3])

    assert len(asked._automatic._texts) == 3
    assert (await send(texts[0]))["query"] == texts[0]
    with pytest.raises(PersistedQueryNotFound, match=r"^PersistedQueryNotFound$"):
        await send(texts[1])


async def test_where_only_trusted_documents_are_served_an_admin_may_send_any(
    store: DocumentStore,
) -> None:
    asked = documents(store, trusted_only=True)
    body = {"query": QUERY, **automatic(digest(QUERY))}

    assert await asked.resolve(body, ADMIN) is body
    with pytest.raises(DocumentNotTrusted):
        await asked.resolve(body, CALLER)
    with pytest.raises(DocumentNotFound) as caught:  # what an admin sent is trusted by nobody else
        await asked.resolve(automatic(digest(QUERY)), CALLER)
    assert caught.value.code == "DOCUMENT_NOT_FOUND"


async def test_while_the_database_does_not_answer_documents_are_served_on(
    store: DocumentStore,
) -> None:
    await store.register([DocumentDraft(id=digest(QUERY), text=QUERY, names=())], client="")
    failing = _Failing(store)
    with moving_time() as time, structlog.testing.capture_logs() as logs:
        async with open_documents(failing, trusted_only=True, max_document_bytes=1000) as asked:
            await asked.resolve({"documentId": digest(QUERY)}, CALLER)
            for is_failing in (True, True, False, True):
                failing.is_failing = is_failing
                asked_before = failing.asked
                while failing.asked == asked_before:
                    time.advance(5.1)
                    await asyncio.sleep(0.01)
                assert await asked.resolve({"query": QUERY}, CALLER) == {"query": QUERY}
            with pytest.raises(StorageUnavailable):
                await asked.resolve({"query": "{ unknown }"}, CALLER)

            time.advance(1.1)
            asked_before = failing.asked
            sent = [{"documentId": digest(f"{number}")} for number in range(20)]
            failed = await asyncio.gather(
                *(asked.resolve(body, CALLER) for body in sent), return_exceptions=True
            )

    assert failing.asked == asked_before + 1
    assert {type(error) for error in failed} == {StorageUnavailable}
    assert [line["event"] for line in logs] == ["documents_not_followed"] * 2
    assert {line["problem"] for line in logs} == {"The database is away"}


class _Failing(DocumentStore):
    """A store whose database sometimes does not answer."""

    def __init__(self, store: DocumentStore) -> None:
        super().__init__(store._database)
        self.is_failing = False
        self.asked = 0

    async def get_revision(self) -> int:
        self.asked += 1
        if self.is_failing:
            raise StorageUnavailable("The database is away")
        return await super().get_revision()


class _Nothing(DocumentStore):
    """Holds no document, and asks no database."""

    def __init__(self) -> None:
        pass

    async def get_revision(self) -> int:
        return 0

    async def list_all(self) -> list[Any]:
        return []
