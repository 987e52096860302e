"""The memory of a simulated Canvas: its clock, tokens, buckets, faults and counts."""

from __future__ import annotations

import hashlib
import hmac
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from simulators.canvas.population import Population, User, build_population
from simulators.canvas.profiles import HOSTED_NOW, Profile

ADMIN_TOKEN = "1~admin-token"
CLIENT_ID = "10000000000001"
CLIENT_SECRET = "confidential-secret"
PUBLIC_CLIENT_ID = "10000000000002"
SCOPED_CLIENT_ID = "10000000000003"
ACCESS_SECONDS = 3600.0
CODE_SECONDS = 600.0
PUBLIC_SECONDS = 7200.0
_BUCKET_LIFETIME_SECONDS = 3600.0
_LOG_LENGTH = 200_000


class VirtualClock:
    """A clock that can be moved forward; else it stands still, ticks, or follows another.

    Args:
        now: What it shows at first, in seconds since 1970.
        ticking: Whether real time passes on it.
        follows: A clock in seconds, with any start; what passes on it passes here too.
    """

    def __init__(
        self,
        now: float = 1_740_000_000.0,
        *,
        ticking: bool = False,
        follows: Callable[[], float] | None = None,
    ) -> None:
        self._now = now
        self._source = time.monotonic if ticking and follows is None else follows
        self._started = self._source() if self._source is not None else 0.0

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        passed = self._source() - self._started if self._source is not None else 0.0
        return self._now + passed

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass at once."""
        self._now += seconds


@dataclass(slots=True, kw_only=True)
class DeveloperKey:
    """A registered OAuth client; without a secret it is public and must use PKCE."""

    id: str
    secret: str | None
    redirect_uri: str
    scopes: frozenset[str] | None = None
    allows_includes: bool = False
    active: bool = True


@dataclass(slots=True, kw_only=True)
class Token:
    """One row of access tokens; a refresh changes `access` in place."""

    access: str
    user_id: int
    key_id: str | None
    refresh: str | None
    scopes: frozenset[str] | None
    expires_at: float | None
    permanent_expires_at: float | None = None
    regenerated_at: float = 0.0
    refresh_expires_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Code:
    """An authorization code: who approved what, for whom, until when."""

    user_id: int
    key_id: str
    scopes: frozenset[str] | None
    userinfo_only: bool
    challenge: str | None
    expires_at: float


@dataclass(slots=True, kw_only=True)
class Throttle:
    """The settings of the leaky buckets; the defaults are those of Canvas's source."""

    enabled: bool = True
    high_water_mark: float = 600.0
    maximum: float = 800.0
    outflow_per_second: float = 10.0
    up_front: float = 50.0
    grant_cost: float = 200.0
    request_cost: float = 0.05
    row_cost: float = 0.002
    cost_by_path: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """A leaky bucket: the leak is taken unclamped, then the amount added, then clamped."""

    count: float
    touched_at: float

    def add(self, amount: float, *, now: float, throttle: Throttle) -> float:
        """Leak, add and clamp, in that order; return what the bucket then holds."""
        leaked = self.count - throttle.outflow_per_second * (now - self.touched_at)
        self.count = min(max(leaked + amount, 0.0), throttle.maximum)
        self.touched_at = now
        return self.count


@dataclass(slots=True, kw_only=True)
class Fault:
    """Something that goes wrong on the next calls to matching paths.

    Kinds: `status` (an error of that status: JSON for 500, HTML from the edge otherwise),
    `html` (200 with a log-in page), `login` (302 to /login), `drop` (no reply for `seconds`,
    then 504), `disconnect` (no reply for `seconds`, then the connection is cut), `slow` (a late
    answer), `trickle` (the body comes in ten pieces over `seconds`), `cut` (the connection ends
    in the middle of the body), `truncated` (half the JSON, in good order), `foreign-next`
    (`next` on another origin), `loop` (`next` is this very page), `no-next` (no `Link` at all),
    `throttled` (as by a full bucket). On a real socket only: `disconnect` and `cut`.
    """

    kind: str
    path: str
    count: int
    after: int = 0
    status: int = 500
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One request as it arrived; `identity` is the token's row or the address, never a token."""

    method: str
    path: str
    route: str
    query: str
    identity: str
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCall:
    """One request for an image: to which origin, and whether it brought credentials there."""

    origin: str
    path: str
    authorized: bool
    status: int


@dataclass(slots=True)
class Counts:
    """What happened since the start or the last reset."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    log: list[Logged] = field(default_factory=list)
    grants: Counter[str] = field(default_factory=Counter)
    refreshes_by_user: Counter[int] = field(default_factory=Counter)
    throttled: int = 0
    running: int = 0
    most_running: int = 0
    tokens_in_url: int = 0
    images: list[ImageCall] = field(default_factory=list)

    @property
    def image_calls(self) -> int:
        """How often an image was asked for."""
        return len(self.images)

    @property
    def image_calls_with_authorization(self) -> int:
        """How often credentials came with that: to another origin than they are for."""
        return sum(call.authorized for call in self.images)

    def total(self) -> int:
        """Return how many calls were answered, by any route."""
        return sum(self.calls.values())


class Canvas:
    """One simulated installation; tests hold it and look inside, clients see only its wire.

    Attributes:
        consent: What the authorize page does: "approve" or "deny" at once, or "page" to ask.
        signed_in: Who the browser is; `unique_id` in the authorize URL overrules it.
        link_origin: Scheme and host written into `Link`; None for the request's own.
        images_url: The second origin, without a slash; set by whoever serves it.
        forward_url: Where a browser goes to end the session elsewhere too, told to whoever
            revokes a token with `expire_sessions=1`; None where nobody else knows of it.
        latency_seconds: Real time added to every answer, plus `latency_per_row_seconds` for
            each row, plus up to `jitter_seconds` drawn from the seed; a `tail_share` of the
            answers, drawn from it as well, take `tail_seconds` more.
    """

    def __init__(
        self,
        population: Population | None = None,
        *,
        profile: Profile = HOSTED_NOW,
        clock: Callable[[], float] | None = None,
        throttle: Throttle | None = None,
        seed: int = 1,
    ) -> None:
        self.population = population or build_population()
        self.profile = profile
        if not isinstance(clock, VirtualClock):
            clock = VirtualClock(ticking=True, follows=clock)
        self.clock = clock
        self.throttle = throttle or Throttle()
        self.counts = Counts()
        self.dice = random.Random(seed)
        self.consent = "approve"
        self.signed_in: int | None = self.population.number(3)
        self.link_origin: str | None = None
        self.images_url = "http://images.invalid"
        self.latency_seconds = 0.0
        self.latency_per_row_seconds = 0.0
        self.jitter_seconds = 0.0
        self.tail_share = 0.0
        self.tail_seconds = 0.0
        self.forward_url: str | None = None
        self.faults: list[Fault] = []
        self.buckets: dict[str, Bucket] = {}
        self.tokens: dict[str, Token] = {}
        self.tokens_by_refresh: dict[str, Token] = {}
        self.revoked: set[str] = set()
        self.codes: dict[str, Code] = {}
        self.keys = _developer_keys()
        self._secret = f"canvas-{seed}".encode()
        admins = [user for user in self.population.users.values() if user.is_admin]
        if admins:
            self.issue_token(admins[0].id, access=ADMIN_TOKEN)

    # ---- tokens --------------------------------------------------------------------------

    def issue_token(
        self,
        user_id: int,
        *,
        access: str | None = None,
        scopes: frozenset[str] | None = None,
        permanent_expires_at: float | None = None,
    ) -> str:
        """Make a manual token, which neither refreshes nor expires in an hour; return it."""
        token = Token(
            access=access or self.random_text(32),
            user_id=user_id,
            key_id=None,
            refresh=None,
            scopes=scopes,
            expires_at=None,
            permanent_expires_at=permanent_expires_at,
        )
        self.tokens[token.access] = token
        return token.access

    def grant(self, key: DeveloperKey, code: Code) -> Token:
        """Make the token pair of a redeemed code."""
        now, lifetime = self.clock(), self.profile.refresh_lifetime_seconds
        token = Token(
            access=self.random_text(32),
            user_id=code.user_id,
            key_id=key.id,
            refresh=self.random_text(32),
            scopes=code.scopes,
            expires_at=now + ACCESS_SECONDS if self.profile.keys_expire else None,
            permanent_expires_at=now + PUBLIC_SECONDS if key.secret is None else None,
            regenerated_at=now,
            refresh_expires_at=now + lifetime if lifetime is not None else None,
        )
        self._store(token)
        self.counts.grants["authorization_code"] += 1
        return token

    def refresh(self, token: Token, key: DeveloperKey) -> bool:
        """Regenerate a row in place; False when the guard found it too fresh to."""
        now = self.clock()
        guard = self.profile.refresh_guard_seconds
        self.counts.grants["refresh_token"] += 1
        self.counts.refreshes_by_user[token.user_id] += 1
        if guard and now - token.regenerated_at < guard:
            return False
        self.tokens.pop(token.access, None)
        token.access, token.regenerated_at = self.random_text(32), now
        token.expires_at = now + ACCESS_SECONDS if self.profile.keys_expire else None
        if key.secret is None:
            self.tokens_by_refresh.pop(token.refresh or "", None)
            token.refresh = self.random_text(32)
            token.permanent_expires_at = now + PUBLIC_SECONDS
        self._store(token)
        return True

    def revoke(self, token: Token) -> None:
        """Delete a row: its access and its refresh token are dead."""
        self.tokens.pop(token.access, None)
        self.revoked.add(token.access)
        if token.refresh is not None:
            self.tokens_by_refresh.pop(token.refresh, None)

    def revoke_user(self, user_id: int) -> int:
        """Delete every token of a user, as an administrator can; return how many."""
        owned = [token for token in self.tokens.values() if token.user_id == user_id]
        for token in owned:
            self.revoke(token)
        return len(owned)

    def is_expired(self, token: Token) -> bool:
        """Whether a token's hour, or its row's whole life, is over."""
        ends = (token.expires_at, token.permanent_expires_at)
        return any(end is not None and end <= self.clock() for end in ends)

    def can_refresh(self, token: Token) -> bool:
        """Whether a token's row, and its refresh token, are still within their lives."""
        ends = (token.permanent_expires_at, token.refresh_expires_at)
        return all(end is None or end > self.clock() for end in ends)

    def latency(self, rows: int) -> float:
        """Return how long the next answer takes, in seconds of real time."""
        delay = self.latency_seconds + self.latency_per_row_seconds * rows
        if self.jitter_seconds:
            delay += self.jitter_seconds * self.dice.random()
        if self.tail_share and self.dice.random() < self.tail_share:
            delay += self.tail_seconds
        return delay

    def user(self, user_id: int) -> User | None:
        """Find an account that is not deleted."""
        user = self.population.users.get(user_id)
        return None if user is None or user.workflow_state == "deleted" else user

    def random_text(self, length: int) -> str:
        """Return hex digits, twice `length` of them, from the seed."""
        return self.dice.randbytes(length).hex()

    def sign(self, text: str) -> str:
        """Return a short code that only this server can compute for this text."""
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:16]

    def _store(self, token: Token) -> None:
        self.tokens[token.access] = token
        if token.refresh is not None:
            self.tokens_by_refresh[token.refresh] = token

    # ---- buckets, faults, latency ----------------------------------------------------------

    def add_to_bucket(self, identity: str, amount: float) -> float:
        """Leak this identity's bucket, add to it, and return what it then holds."""
        now = self.clock()
        bucket = self.buckets.get(identity)
        if bucket is None or now - bucket.touched_at > _BUCKET_LIFETIME_SECONDS:
            bucket = self.buckets[identity] = Bucket(0.0, now)
        return bucket.add(amount, now=now, throttle=self.throttle)

    def fail(
        self,
        kind: str,
        *,
        path: str = "/",
        count: int = 1,
        after: int = 0,
        status: int = 500,
        seconds: float = 0.0,
    ) -> None:
        """Let `count` calls to paths that start so go wrong, once `after` went well."""
        self.faults.append(
            Fault(kind=kind, path=path, count=count, after=after, status=status, seconds=seconds)
        )

    def take_fault(self, path: str) -> Fault | None:
        """Return the fault that this call meets, and use it up."""
        for fault in self.faults:
            if not path.startswith(fault.path):
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            fault.count -= 1
            if fault.count <= 0:
                self.faults.remove(fault)
            return fault
        return None

    def write_log(self, logged: Logged) -> None:
        """Count a request, and remember it while the log has room."""
        self.counts.calls[logged.method, logged.route] += 1
        if len(self.counts.log) < _LOG_LENGTH:
            self.counts.log.append(logged)

    def reset(self) -> None:
        """Forget counts, faults and what the buckets hold; data and tokens stay."""
        self.counts = Counts(running=self.counts.running)
        self.faults.clear()
        self.buckets.clear()


def _developer_keys() -> dict[str, DeveloperKey]:
    here = "http://127.0.0.1/oauth/callback"
    read_own = frozenset(
        {"url:GET|/api/v1/users/:id", "url:GET|/api/v1/courses", "url:GET|/api/v1/courses/:id"}
    )
    keys = [
        DeveloperKey(id=CLIENT_ID, secret=CLIENT_SECRET, redirect_uri=here),
        DeveloperKey(id=PUBLIC_CLIENT_ID, secret=None, redirect_uri=here),
        DeveloperKey(
            id=SCOPED_CLIENT_ID, secret="scoped-secret", redirect_uri=here, scopes=read_own
        ),
    ]
    return {key.id: key for key in keys}
