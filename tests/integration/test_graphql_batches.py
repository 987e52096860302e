"""The batches of a request, over providers in memory."""

import asyncio

from pretend_roster import World, a_context, a_course, an_enrollment

from resolvers.loaders import Loaders, when_there


async def test_every_loader_of_a_request_makes_one_call_per_provider() -> None:
    world = World()
    for provider_id in ("a", "b"):
        roster = world.add(provider_id, user_count=3, course_count=3)
        roster.enrollments = [an_enrollment(provider_id, "u0", "c1")]
    loaders = a_context(world).loaders
    keys = [("a", "u0"), ("b", "u1"), ("a", "u2"), ("a", "nobody")]
    course_keys = [("a", "c0"), ("b", "c1"), ("a", "c2")]

    users = await loaders.user_by_id.load_many(keys)
    courses = await loaders.course_by_id.load_many(course_keys)
    by_user = await loaders.enrollments_by_user.load_many(keys)
    by_course = await loaders.enrollments_by_course.load_many(course_keys)

    assert [None if user is None else user.external_id for user in users] == [
        "u0",
        "u1",
        "u2",
        None,
    ]
    assert [course.external_id for course in courses if course] == ["c0", "c1", "c2"]
    assert [None if rows is None else len(rows) for rows in by_user] == [1, 0, 0, None]
    assert [None if rows is None else len(rows) for rows in by_course] == [0, 1, 0]
    assert world.rosters["a"].calls == [
        ("fetch_users", ["u0", "u2", "nobody"]),
        ("fetch_courses", ["c0", "c2"]),
        ("fetch_enrollments_by_user", ["u0", "u2", "nobody"]),
        ("fetch_enrollments_by_course", ["c0", "c2"]),
    ]
    assert world.rosters["b"].call_names() == [
        "fetch_users",
        "fetch_courses",
        "fetch_enrollments_by_user",
        "fetch_enrollments_by_course",
    ]


async def test_icons_of_many_courses_and_widths_are_one_batch() -> None:
    world = World()
    loaders = a_context(world).loaders
    with_icon, without = a_course("a", 1), a_course("a", 2, icon=None)

    urls = await asyncio.gather(
        when_there(loaders.icon_urls([with_icon, without], 64)),
        when_there(loaders.icon_urls([with_icon], 256)),
    )

    assert list(urls) == [["/media/c1-64.webp", None], ["/media/c1-256.webp"]]
    assert world.icon_batches == [3]


async def test_without_an_icon_service_there_are_no_icons() -> None:
    world = World()
    loaders = Loaders(
        world,
        None,
        reading=a_context(world).reading,
        page_size_of=lambda _provider: 10,
        max_collected_rows=10,
    )

    course = a_course("a", 1)

    assert await when_there(loaders.icon_urls([course], 64)) == [None]
    assert await when_there(loaders.icon_assets([course])) == [None]
