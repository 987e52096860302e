"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-b4a8fce7dd21",
    weights=(
        -3.6708984375,  # exact_count
        0.8759765625,  # exact_bits
        -2.048828125,  # nickname_count
        0.673828125,  # nickname_bits
        -2.498046875,  # typo_count
        0.7197265625,  # typo_bits
        -3.2294921875,  # sound_count
        0.759765625,  # sound_bits
        -3.8115234375,  # script_count
        0.9365234375,  # script_bits
        1.7041015625,  # initial_count
        -4.6416015625,  # loose_count
        0.6044921875,  # loose_bits
        -0.0908203125,  # joined_count
        0.0888671875,  # joined_bits
        -3.794921875,  # reading_count
        0.89453125,  # reading_bits
        0.5732421875,  # consonants_count
        0.5087890625,  # consonants_bits
        2.7890625,  # in_handle_count
        0.095703125,  # in_handle_bits
        -4.3779296875,  # conflict_one
        -9.181640625,  # conflict_more
        -4.138671875,  # conflict_script
        -3.4248046875,  # conflict_consonants
        -1.2880859375,  # extra_tokens
        0.3388671875,  # nothing_in_common
        1.3994140625,  # one_token_only
        2.5966796875,  # email_same
        0.8818359375,  # email_shared
        -0.3701171875,  # email_other
        5.4638671875,  # handle_same
        3.5634765625,  # handle_same_built
        1.962890625,  # handle_stem
        2.2275390625,  # handle_stem_built
        -1.1298828125,  # handle_other
        3.1796875,  # handle_from_name
        3.17578125,  # handle_from_initial
        1.3740234375,  # handle_from_token
        7.4228515625,  # id_same
        5.1572265625,  # id_near
        -2.1162109375,  # id_other
        0.7529296875,  # year_bits
        -2.466796875,  # year_near
        -4.30859375,  # year_other
        0.3251953125,  # gender_same
        -3.6142578125,  # gender_other
        0.267578125,  # zone_same
        -0.7529296875,  # zone_other
        1.5615234375,  # role_same
        -4.4619140625,  # role_other
        0.7294921875,  # groups_same
        0.7890625,  # groups_other
    ),
    base=4.1826171875,
    slope=1.068359375,
    rivalry=0.619140625,
    shift=-0.37109375,
    alone=(1.1279296875, 0.607421875, 1.80859375),
)
