"""How much of the gateway a key may use, by a clock of the test's own."""

import pytest

from resolvers.errors import QuotaExceeded
from resolvers.quotas import Quotas, QuotaTerms


class Clock:
    """Seconds that go by when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _quotas(**terms: int) -> tuple[Quotas, Clock]:
    clock = Clock()
    return Quotas(QuotaTerms(**terms), now=clock), clock


def _used(quotas: Quotas, key_id: str, *, cost: int, actual: int) -> None:
    charge = quotas.begin(key_id, cost=cost)
    charge.actual = actual
    charge.settle()


def test_a_key_may_use_a_minutes_cost_at_once_and_then_as_time_goes_by() -> None:
    quotas, clock = _quotas(cost_per_minute=600)
    _used(quotas, "a", cost=600, actual=600)

    with pytest.raises(QuotaExceeded) as refused:
        quotas.begin("a", cost=50)
    clock.now += 5
    quotas.begin("a", cost=50)

    assert refused.value.retry_after_seconds == 5
    assert refused.value.message == (
        "This key may use a cost of 600 a minute and has 0 left; this operation is estimated at 50"
    )
    assert refused.value.limit == "key_cost"


def test_what_an_operation_did_not_cost_is_given_back() -> None:
    quotas, _ = _quotas(cost_per_minute=600)
    _used(quotas, "a", cost=600, actual=10)

    quotas.begin("a", cost=590)
    with pytest.raises(QuotaExceeded):
        quotas.begin("a", cost=1)


def test_what_an_operation_cost_beyond_its_estimate_is_owed() -> None:
    quotas, clock = _quotas(cost_per_minute=600)
    _used(quotas, "a", cost=0, actual=1_200)

    clock.now += 60
    with pytest.raises(QuotaExceeded) as refused:
        quotas.begin("a", cost=10)

    assert refused.value.retry_after_seconds == 1


def test_a_charge_is_settled_once() -> None:
    quotas, _ = _quotas(cost_per_minute=600, most_operations=1)
    charge = quotas.begin("a", cost=600)
    charge.actual = 600
    charge.settle()
    charge.settle()

    with pytest.raises(QuotaExceeded):
        quotas.begin("a", cost=1)


def test_an_estimate_above_a_minutes_cost_begins_when_nothing_was_used() -> None:
    quotas, clock = _quotas(cost_per_minute=600)
    _used(quotas, "a", cost=6_000, actual=700)

    with pytest.raises(QuotaExceeded) as refused:
        quotas.begin("a", cost=6_000)
    clock.now += refused.value.retry_after_seconds
    quotas.begin("a", cost=6_000)

    assert refused.value.retry_after_seconds == 70


def test_one_key_leaves_the_others_alone() -> None:
    quotas, _ = _quotas(cost_per_minute=600, most_operations=1)
    quotas.begin("a", cost=600)

    quotas.begin("b", cost=600)


def test_a_key_has_so_many_operations_at_once() -> None:
    quotas, _ = _quotas(most_operations=2)
    first = quotas.begin("a", cost=10**9)
    quotas.begin("a", cost=10**9)

    with pytest.raises(QuotaExceeded) as refused:
        quotas.begin("a", cost=1)
    first.settle()
    quotas.begin("a", cost=1)

    assert refused.value.limit == "key_operations"
    assert refused.value.retry_after_seconds == 1


def test_nothing_is_counted_where_nothing_is_limited() -> None:
    quotas, _ = _quotas()

    for _ in range(1_000):
        quotas.begin("a", cost=10**9)


def test_keys_that_did_nothing_for_a_minute_are_forgotten() -> None:
    quotas, clock = _quotas(cost_per_minute=600)
    for number in range(100_000):
        clock.now += 0.1
        _used(quotas, f"key{number}", cost=1, actual=1)

    assert len(quotas) < 2_500
