"""Putting the parts together: what one process holds for as long as it runs."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.access import KeyRegister, open_token
from gateway.admission import Admission, AdmissionTerms
from gateway.browsers import Browsers
from gateway.documents import Documents, open_documents
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.tokens import TokenTerms, open_verifier
from gateway.watching import Watching
from resolvers.auditing import AuditLog
from resolvers.authorizing import Authorizer
from resolvers.caching import CacheTerms, RecordCache, open_cache
from resolvers.callback import CallbackTerms, ProductCallback, open_callback
from resolvers.context import Access, ReadingLimits, RequestContext
from resolvers.icons import IconService, open_icons
from resolvers.importing import Importer, ImportSettings
from resolvers.people import MatchSettings, People
from resolvers.quotas import Quotas, QuotaTerms
from resolvers.reading import ReadingTerms
from resolvers.registration import ProviderRegistration
from resolvers.writing import Writes, open_writes
from schema.limits import DocumentLimits
from sessions.addresses import AddressPolicy
from sessions.manager import SessionManager, SessionSettings, new_owner
from sessions.registry import Registry
from storage.api_keys import ApiKeyStore
from storage.audit import AuditStore
from storage.authorizations import AuthorizationStore
from storage.cache import CacheStore
from storage.callbacks import CallbackStore
from storage.credentials import KeyRing, Secret
from storage.database import Database, open_database
from storage.documents import DocumentStore
from storage.idempotency import IdempotencyStore
from storage.imports import ImportStore
from storage.leases import LeaseStore
from storage.matching import MatchStore
from storage.media import MediaStore
from storage.people import PeopleStore
from storage.providers import ProviderStore

if TYPE_CHECKING:
    from gateway.tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Everything a request may need; made by ``open_gateway``."""

    settings: Settings
    database: Database
    key_ring: KeyRing
    providers: ProviderStore
    api_keys: ApiKeyStore
    keys: KeyRegister
    trusted: DocumentStore
    documents: Documents
    sessions: SessionManager
    platforms: Registry
    media: MediaStore
    icons: IconService
    writes: Writes
    authorizer: Authorizer
    imports: ImportStore
    importer: Importer
    people: People
    audit: AuditLog
    callback: ProductCallback | None
    registration: ProviderRegistration
    limits: ReadingLimits
    cache: RecordCache
    terms: ReadingTerms
    quotas: Quotas
    metrics: Metrics
    tracing: Tracing | None
    watching: Watching
    admission: Admission
    browsers: Browsers
    token_made: Secret[str] | None

    def request_context(
        self,
        access: Access,
        request_id: str | None = None,
        *,
        subjects: Mapping[str, str] | None = None,
    ) -> RequestContext:
        """Return what one request may use, with batches of its own.

        Args:
            access: What the caller may do.
            request_id: Shown to the caller; made here, when ``None``.
            subjects: External ids of the users it acts for by provider id, if it acts for users;
                a learner acts for itself without being asked to.

        Raises:
            Forbidden: It is to act for users, and the caller's key may not.
        """
        return RequestContext(
            access=access,
            sessions=self.sessions,
            providers=self.providers,
            platforms=self.platforms,
            registration=self.registration,
            icons=self.icons,
            writes=self.writes,
            authorizing=self.authorizer,
            imports=self.imports,
            people=self.people,
            audit=self.audit,
            limits=self.limits,
            cache=self.cache,
            terms=self.terms,
            quotas=self.quotas,
            request_id=request_id or uuid.uuid4().hex,
            subjects=subjects or {},
            watcher=self.watching,
        )


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Open database, sessions and icons, and close them in order at the end.

    Raises:
        StorageError: The database or the key file cannot be used.
        TokenFileUnusable: The generated token cannot be kept.
    """
    settings.data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    token, made = open_token(settings.token, settings.data_folder)
    key_ring = open_key_ring(settings)
    metrics = Metrics()
    policy = address_policy(settings)
    platforms = Registry.discover()
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(_tracing(settings))
        database = await stack.enter_async_context(open_database(settings.database_url))
        providers = ProviderStore(database, key_ring)
        leases = LeaseStore(database, key_ring, owner=new_owner())
        kept = CacheStore(database)
        sessions = SessionManager(
            providers=providers,
            leases=leases,
            cache=kept,
            registry=platforms,
            policy=policy,
            settings=SessionSettings(
                heartbeat_seconds=settings.heartbeat_seconds,
                shutdown_seconds=settings.shutdown_seconds,
            ),
            observer=metrics,
            http_observer=metrics.on_call,
            tracer=tracing,
        )
        stack.push_async_callback(sessions.aclose)
        cache = await stack.enter_async_context(
            open_cache(
                kept,
                terms=CacheTerms(
                    max_bytes=settings.cache_mib * 1024 * 1024,
                    flight_seconds=settings.deadline_seconds,
                ),
            )
        )
        media = MediaStore(database, settings.media_folder)
        icons = await stack.enter_async_context(
            open_icons(sessions=sessions, store=media, public_url=settings.public_url)
        )
        writes = await stack.enter_async_context(open_writes(IdempotencyStore(database)))
        callback = None
        if settings.product_callback_url is not None:
            callback = await stack.enter_async_context(
                open_callback(
                    settings.product_callback_url,
                    callbacks=CallbackStore(database),
                    leases=leases,
                    providers=providers,
                    terms=CallbackTerms(
                        patience_seconds=settings.callback_seconds,
                        pause_seconds=settings.callback_pause_seconds,
                        nonce_seconds=settings.nonce_seconds,
                        secret=settings.registration_secret,
                    ),
                    observer=metrics.on_call,
                    tracer=tracing,
                )
            )
        imports = ImportStore(database)
        importer = Importer(
            imports=imports,
            leases=leases,
            sessions=sessions,
            providers=providers,
            platforms=platforms,
            settings=ImportSettings(
                interval_seconds=settings.import_hours * 3600 or None,
                changes_kept_seconds=settings.changes_days * 86_400,
            ),
            tracer=tracing,
        )
        people = People(
            store=PeopleStore(database),
            matches=MatchStore(database),
            imports=imports,
            leases=leases,
            providers=providers,
            settings=MatchSettings(
                link_above=settings.match_link_above,
                bulk_from=settings.match_bulk_from,
                bulk_folder=settings.data_folder / "matching",
            ),
            observer=metrics,
            tracer=tracing,
        )
        audit = AuditLog(AuditStore(database), leases, kept_seconds=settings.audit_days * 86_400.0)
        for work in (*importer.work(), *people.work(), audit.work()):
            sessions.add_work(work)
        trusted = DocumentStore(database)
        documents = await stack.enter_async_context(
            open_documents(
                trusted,
                trusted_only=settings.documents == "trusted",
                max_document_bytes=DocumentLimits.of_tokens(settings.max_document_tokens).max_bytes,
            )
        )
        api_keys = ApiKeyStore(database)
        verifier = None
        if settings.jwt_keys is not None:
            verifier = await stack.enter_async_context(
                open_verifier(
                    TokenTerms(
                        keys=settings.jwt_keys,
                        issuer=settings.jwt_issuer or "",
                        audience=settings.jwt_audience or "",
                        accounts_claim=settings.jwt_accounts_claim,
                    ),
                    observer=metrics.on_call,
                )
            )
        yield Gateway(
            settings=settings,
            database=database,
            key_ring=key_ring,
            providers=providers,
            api_keys=api_keys,
            keys=KeyRegister(
                api_keys,
                token,
                open_to_all=settings.dev,
                verifier=verifier,
                learner_scopes=settings.jwt_scopes,
            ),
            browsers=Browsers(
                settings.cors_origins, public_url=settings.public_url, open_to_all=settings.dev
            ),
            trusted=trusted,
            documents=documents,
            sessions=sessions,
            platforms=platforms,
            media=media,
            icons=icons,
            writes=writes,
            authorizer=Authorizer(
                public_url=settings.public_url,
                key=_derived_key(token, purpose=b"authorization links"),
                requests=AuthorizationStore(database, key_ring),
                sessions=sessions,
                providers=providers,
                platforms=platforms,
            ),
            imports=imports,
            importer=importer,
            people=people,
            audit=audit,
            callback=callback,
            registration=ProviderRegistration(
                providers=providers,
                sessions=sessions,
                platforms=platforms,
                policy=policy,
                allowed_urls=settings.allowed_provider_urls,
                callback=callback,
                cache=cache,
            ),
            limits=ReadingLimits(
                max_page_size=settings.max_page_size,
                max_collected_rows=settings.max_collected_rows,
                max_nested_rows=settings.max_nested_rows,
                cursor_key=_derived_key(token, purpose=b"cursors"),
                cursor_seconds=settings.cursor_seconds,
            ),
            cache=cache,
            terms=ReadingTerms(
                max_age_seconds=settings.max_age_seconds,
                provider_seconds=settings.provider_seconds,
            ),
            quotas=Quotas(
                QuotaTerms(
                    cost_per_minute=settings.max_key_cost,
                    most_operations=settings.max_key_operations,
                )
            ),
            metrics=metrics,
            tracing=tracing,
            watching=Watching(
                metrics,
                tracing,
                is_trusted=documents.trusted.knows,
                slow_seconds=settings.slow_seconds,
            ),
            admission=Admission(
                AdmissionTerms(
                    most=settings.max_requests,
                    most_subscriptions=settings.max_subscriptions,
                    patience_seconds=settings.queue_seconds,
                    standing_seconds=settings.queue_seconds,
                ),
                metrics,
            ),
            token_made=token if made else None,
        )


@asynccontextmanager
async def _tracing(settings: Settings) -> AsyncIterator[Tracing | None]:
    if settings.tracing == "off":
        yield None
        return
    from gateway.tracing import open_tracing  # noqa: PLC0415 - OpenTelemetry is an extra

    async with open_tracing(
        tells_providers=settings.tracing == "upstream",
        shutdown_seconds=settings.shutdown_seconds,
    ) as tracing:
        yield tracing


def open_key_ring(settings: Settings) -> KeyRing:
    """Return the keys of the environment, or those of the data folder's file.

    Raises:
        StorageError: The file cannot be used.
    """
    return settings.keys or KeyRing.open_file(settings.data_folder / "keys")


def address_policy(settings: Settings) -> AddressPolicy:
    """Return the operator's rules about where providers may be."""
    return AddressPolicy(
        allowed_networks=settings.allowed_networks, allowed_ports=settings.allowed_ports
    )


def _derived_key(token: Secret[str], *, purpose: bytes) -> Secret[bytes]:
    """Return a key that every process of the same bootstrap token has."""
    return Secret(hmac.digest(token.reveal().encode(), purpose, hashlib.sha256))
