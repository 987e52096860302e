"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-74a8ebde25b6",
    weights=(
        -2.921875,  # exact_count
        0.7314453125,  # exact_bits
        -2.1220703125,  # nickname_count
        0.60546875,  # nickname_bits
        -2.31640625,  # typo_count
        0.609375,  # typo_bits
        -2.8603515625,  # sound_count
        0.5244140625,  # sound_bits
        0.68359375,  # script_count
        0.3828125,  # script_bits
        0.8447265625,  # initial_count
        -4.4833984375,  # loose_count
        0.53125,  # loose_bits
        -0.388671875,  # joined_count
        0.345703125,  # joined_bits
        2.537109375,  # in_handle_count
        0.0732421875,  # in_handle_bits
        -5.8642578125,  # conflict_one
        -10.931640625,  # conflict_more
        -2.53515625,  # conflict_script
        -1.416015625,  # extra_tokens
        -0.3779296875,  # nothing_in_common
        0.52734375,  # one_token_only
        2.6953125,  # email_same
        0.3505859375,  # email_shared
        -0.3154296875,  # email_other
        5.0244140625,  # handle_same
        3.9404296875,  # handle_same_built
        1.654296875,  # handle_stem
        2.390625,  # handle_stem_built
        -1.2744140625,  # handle_other
        3.4794921875,  # handle_from_name
        3.3994140625,  # handle_from_initial
        1.5205078125,  # handle_from_token
        9.4033203125,  # id_same
        3.4970703125,  # id_near
        -2.8544921875,  # id_other
        0.8515625,  # year_bits
        -2.9677734375,  # year_near
        -5.0517578125,  # year_other
        0.1259765625,  # gender_same
        -3.9609375,  # gender_other
        0.5078125,  # zone_same
        -0.81640625,  # zone_other
        1.84765625,  # role_same
        -4.7470703125,  # role_other
        0.4892578125,  # groups_same
        1.6083984375,  # groups_other
    ),
    base=5.388671875,
    slope=1.0810546875,
    rivalry=0.654296875,
    shift=1.98046875,
)
