"""What differs between the Kolibri releases that the simulator can speak as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One release's behaviour, as far as a client can see it."""

    version: str
    thumbnail_urls: bool  # /api/content/channel/ gives URLs, and channel-thumbnail exists
    channel_labels: bool  # channels list their categories and grade levels
    ordering: bool  # ?ordering= is obeyed on users, and users have date_joined
    export_folders: bool  # the CSV has one column per folder level
    bulk_filters: bool  # by_ids, related_to__in, user_type__in and date_joined__gte/lte are obeyed
    soft_delete: bool  # deleted users are kept, and listed apart
    courses: bool  # course sessions exist
    picture_passwords: bool  # picture password fields exist, and so do the counts beside them
    prevalidate: bool  # ?prevalidate=true checks a password without logging in
    export_user_type: bool  # the CSV has a "User type" column
    job_max_retries: bool  # a task says how often it may be retried
    strict_login: (
        bool  # a login is checked field by field, and lacking a facility means the default
    )
    unknown_facility_crashes: bool  # a login to a facility that does not exist is a 500


PROFILES = {
    profile.version: profile
    for profile in (
        Profile(
            version="0.17.0",
            thumbnail_urls=False,
            channel_labels=False,
            ordering=False,
            export_folders=False,
            bulk_filters=False,
            soft_delete=False,
            courses=False,
            picture_passwords=False,
            prevalidate=False,
            export_user_type=False,
            job_max_retries=False,
            strict_login=False,
            unknown_facility_crashes=False,
        ),
        Profile(
            version="0.18.4",
            thumbnail_urls=True,
            channel_labels=True,
            ordering=True,
            export_folders=True,
            bulk_filters=False,
            soft_delete=False,
            courses=False,
            picture_passwords=False,
            prevalidate=False,
            export_user_type=False,
            job_max_retries=False,
            strict_login=True,
            unknown_facility_crashes=True,
        ),
        Profile(
            version="0.19.5",
            thumbnail_urls=True,
            channel_labels=True,
            ordering=True,
            export_folders=True,
            bulk_filters=True,
            soft_delete=True,
            courses=True,
            picture_passwords=True,
            prevalidate=True,
            export_user_type=True,
            job_max_retries=True,
            strict_login=True,
            unknown_facility_crashes=False,
        ),
    )
}
"""Read in the sources of 0.17.0 and 0.18.4; 0.19.5 is compared with a real server in the tests."""
