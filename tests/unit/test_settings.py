import base64
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import SETTINGS, Settings, SettingsError, describe, read_settings
from sessions.addresses import LOCAL_NETWORKS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
KEY = base64.b64encode(bytes(32)).decode()
TOKEN = "a-token-nobody-should-ever-see"


def settings(**given: str) -> Settings:
    return read_settings({f"GATEWAY_{name.upper()}": value for name, value in given.items()})


def test_without_any_variable_everything_has_its_default() -> None:
    found = settings()

    assert (found.host, found.port, found.public_url) == (
        "127.0.0.1",
        8080,
        "http://127.0.0.1:8080",
    )
    assert found.data_folder == Path("learning-gateway-data")
    assert found.database_url == f"sqlite:///{Path('learning-gateway-data').resolve()}/gateway.db"
    assert found.media_folder == Path("learning-gateway-data/media")
    assert (found.token, found.keys, found.product_callback_url) == (None, None, None)
    assert found.allowed_networks == LOCAL_NETWORKS
    assert (found.allowed_ports, found.allowed_provider_urls) == (None, ())
    assert (found.graphiql, found.dev, found.public_metrics) == (True, False, False)
    assert (found.workers, found.shutdown_seconds) == (1, 20.0)


def test_an_empty_value_counts_as_not_set() -> None:
    assert settings(port="", product_callback_url=" ", token="") == settings()


def test_places_follow_the_data_folder_the_host_and_the_port() -> None:
    found = settings(data_folder="/data", host="0.0.0.0", port="9000")

    assert found.database_url == "sqlite:////data/gateway.db"
    assert found.media_folder == Path("/data/media")
    assert found.public_url == "http://127.0.0.1:9000"


def test_lists_are_separated_by_commas() -> None:
    found = settings(
        allowed_networks="10.0.0.0/8, fd00::/8",
        allowed_ports="80,443 , 8080",
        allowed_provider_urls="https://a.example/kolibri/, http://b.example",
    )

    assert found.allowed_networks == ("10.0.0.0/8", "fd00::/8")
    assert found.allowed_ports == frozenset({80, 443, 8080})
    assert found.allowed_provider_urls == ("https://a.example/kolibri", "http://b.example")
    assert settings(allowed_networks="none").allowed_networks == ()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("port", "0", "out of range"),
        ("port", "65536", "out of range"),
        ("port", "http", "not a whole number"),
        ("port", "-1", "not a whole number"),
        ("port", "٨٠", "not a whole number"),
        ("deadline_seconds", "soon", "not a number of seconds"),
        ("deadline_seconds", "0", "out of range"),
        ("deadline_seconds", "1e3", "not a number of seconds"),
        ("public_url", "learn.example.org", "not an http or https URL"),
        ("public_url", "ftp://learn.example.org", "not an http or https URL"),
        ("product_callback_url", "http://user:pass@product/", "holds credentials"),
        ("product_callback_url", "http://product/?token=1", "query or a fragment"),
        ("allowed_networks", "10.0.0.0/33", "10.0.0.0/33"),
        ("allowed_networks", "lan", "lan"),
        ("allowed_ports", "80,https", "not a whole number"),
        ("graphiql", "yes", "neither on nor off"),
        ("log_level", "loud", "not one of them"),
        ("log_format", "xml", "not one of them"),
        ("workers", "17", "out of range"),
    ],
)
def test_a_wrong_value_is_named_with_the_form_it_should_have(
    name: str, value: str, problem: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{name: value})

    (setting,) = (setting for setting in SETTINGS if setting.field == name)
    message = str(caught.value)
    assert message.startswith(f"{setting.name} {value!r} ")
    assert problem in message
    assert message.endswith(f": expected {setting.form}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", "short-secret"),
        ("token", "a long secret with spaces"),
        ("token", "sécret-with-a-strange-letter"),
        ("registration_secret", "short-secret"),
        ("keys", "k1:not-base64-but-secret"),
        ("keys", f"k1:{KEY},k1:{KEY}"),
        ("keys", KEY),
    ],
)
def test_a_wrong_secret_is_named_but_not_shown(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{name: value})

    message = str(caught.value)
    assert message.startswith(f"GATEWAY_{name.upper()} ")
    assert "expected" in message
    assert "secret" not in message.lower().replace("registration_secret", "")
    assert "sécret" not in message
    assert KEY not in message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("GATEWAY_PORTS", "GATEWAY_PORT"),
        ("GATEWAY_TOKENS", "GATEWAY_TOKEN"),
        ("GATEWAY_HEARTBEAT", "GATEWAY_HEARTBEAT_SECONDS"),
        ("GATEWAY_DATABASE", "GATEWAY_DATABASE_URL"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(
    unknown: str, nearest: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({unknown: "a-secret-value"})

    assert str(caught.value) == f"{unknown} is not a setting; the nearest is {nearest}"


def test_variables_of_others_and_of_the_test_suite_are_left_alone() -> None:
    environment = {"PATH": "/bin", "MY_GATEWAY_PORT": "x", "GATEWAY_TEST_POSTGRES": "required"}

    assert read_settings(environment) == settings()


def test_a_gateway_without_keys_is_refused_unless_only_this_machine_reaches_it() -> None:
    assert settings(dev="on").dev
    with pytest.raises(SettingsError, match="GATEWAY_DEV opens the API to everyone"):
        settings(dev="on", host="0.0.0.0")


def test_a_description_names_every_setting_and_shows_no_secret() -> None:
    found = settings(
        token=TOKEN,
        keys=f"k1:{KEY}",
        registration_secret=TOKEN,
        database_url=f"postgresql://gateway:{TOKEN}@db/gateway",
        allowed_ports="443,80",
    )

    shown = describe(found)

    assert list(shown) == [setting.name for setting in SETTINGS]
    assert shown["GATEWAY_TOKEN"] == shown["GATEWAY_KEYS"] == "***"
    assert shown["GATEWAY_DATABASE_URL"] == "***"
    assert shown["GATEWAY_ALLOWED_PORTS"] == "80,443"
    assert shown["GATEWAY_GRAPHIQL"] == "on"
    assert TOKEN not in str(shown) + repr(found)
    assert KEY not in str(shown) + repr(found)


def test_a_description_can_be_read_back() -> None:
    shown = describe(settings())

    assert read_settings({name: value for name, value in shown.items() if value != "***"}) == (
        settings()
    )


def test_the_page_documents_every_setting_with_its_meaning_form_and_default() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = {
        section.partition("\n")[0]: section.partition("\n")[2].strip()
        for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    }
    documented = {
        name: re.split(r"^## ", body, flags=re.MULTILINE)[0].strip()
        for name, body in sections.items()
    }

    expected = {}
    for setting in SETTINGS:
        default = "none" if setting.default is None else f"`{setting.default}`"
        lines = [setting.meaning, "", f"- Form: {setting.form}", f"- Default: {default}"]
        expected[setting.name] = "\n".join(
            [*lines, *(["- Secret: never shown"] if setting.secret else [])]
        )
    assert documented == expected


@given(
    st.dictionaries(
        st.sampled_from([setting.name for setting in SETTINGS]),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    )
)
def test_any_value_is_either_taken_or_refused_by_name(environment: dict[str, str]) -> None:
    outcome = _outcome(environment)

    assert isinstance(outcome, Settings) or any(name in outcome for name in environment)


def _outcome(environment: dict[str, str]) -> Settings | str:
    try:
        return read_settings(environment)
    except SettingsError as error:
        return str(error)


def test_learners_tokens_are_set_up_altogether_or_not_at_all() -> None:
    with pytest.raises(SettingsError) as caught:
        settings(jwt_keys="/etc/keys.json", jwt_issuer="https://login.example.org/")
    found = settings(
        jwt_keys="https://login.example.org/keys",
        jwt_issuer="https://login.example.org/",
        jwt_audience="learning-gateway",
        jwt_scopes="read:users, introspect",
    )

    assert str(caught.value).startswith("GATEWAY_JWT_AUDIENCE is missing")
    assert found.jwt_issuer == "https://login.example.org/"  # exactly as it was written
    assert found.jwt_scopes == {"read:users", "introspect"}
    assert found.jwt_accounts_claim == "learning_accounts"


@pytest.mark.parametrize("scope", ["admin", "write:users", "act:users", "read:grades"])
def test_learners_can_be_given_nothing_that_is_not_their_own(scope: str) -> None:
    with pytest.raises(SettingsError, match=f"holds {scope}, which learners cannot have"):
        settings(jwt_scopes=f"read:users,{scope}")
