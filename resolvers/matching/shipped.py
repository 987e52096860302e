"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-c9c15573183e",
    weights=(
        -3.669921875,  # exact_count
        0.876953125,  # exact_bits
        -2.0224609375,  # nickname_count
        0.6728515625,  # nickname_bits
        -2.4892578125,  # typo_count
        0.7197265625,  # typo_bits
        -3.3466796875,  # sound_count
        0.7861328125,  # sound_bits
        -3.3193359375,  # script_count
        0.86328125,  # script_bits
        1.7265625,  # initial_count
        -5.46875,  # loose_count
        0.6611328125,  # loose_bits
        -0.08984375,  # joined_count
        0.0908203125,  # joined_bits
        -3.7998046875,  # reading_count
        0.896484375,  # reading_bits
        0.62109375,  # consonants_count
        0.5029296875,  # consonants_bits
        2.7421875,  # in_handle_count
        0.1025390625,  # in_handle_bits
        -4.3681640625,  # conflict_one
        -9.146484375,  # conflict_more
        -4.13671875,  # conflict_script
        -3.4140625,  # conflict_consonants
        -1.2880859375,  # extra_tokens
        0.302734375,  # nothing_in_common
        1.396484375,  # one_token_only
        2.611328125,  # email_same
        0.9375,  # email_shared
        -0.373046875,  # email_other
        5.5146484375,  # handle_same
        3.513671875,  # handle_same_built
        1.9765625,  # handle_stem
        2.193359375,  # handle_stem_built
        -1.138671875,  # handle_other
        3.1357421875,  # handle_from_name
        3.1884765625,  # handle_from_initial
        1.3671875,  # handle_from_token
        7.376953125,  # id_same
        5.048828125,  # id_near
        -2.1435546875,  # id_other
        0.755859375,  # year_bits
        -2.4736328125,  # year_near
        -4.310546875,  # year_other
        0.318359375,  # gender_same
        -3.6064453125,  # gender_other
        0.26171875,  # zone_same
        -0.7587890625,  # zone_other
        1.5517578125,  # role_same
        -4.4521484375,  # role_other
        0.73046875,  # groups_same
        0.787109375,  # groups_other
    ),
    base=4.1806640625,
    slope=1.0703125,
    rivalry=0.619140625,
    shift=-0.37890625,
    alone=(1.1279296875, 0.609375, 1.8203125),
)
