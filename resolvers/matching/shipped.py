"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-e12855766d96",
    weights=(
        -3.673828125,  # exact_count
        0.873046875,  # exact_bits
        -2.0947265625,  # nickname_count
        0.673828125,  # nickname_bits
        -2.4638671875,  # typo_count
        0.7109375,  # typo_bits
        -3.42578125,  # sound_count
        0.787109375,  # sound_bits
        -2.509765625,  # script_count
        0.5556640625,  # script_bits
        1.67578125,  # initial_count
        -4.92578125,  # loose_count
        0.603515625,  # loose_bits
        -0.0185546875,  # joined_count
        0.669921875,  # joined_bits
        -2.81640625,  # reading_count
        0.7724609375,  # reading_bits
        0.7783203125,  # consonants_count
        0.13671875,  # consonants_bits
        1.60546875,  # vowels_count
        0.38671875,  # vowels_bits
        0.98046875,  # in_handle_count
        0.3095703125,  # in_handle_bits
        -4.556640625,  # conflict_one
        -9.3486328125,  # conflict_more
        -4.6044921875,  # conflict_script
        -3.5830078125,  # conflict_consonants
        -1.29296875,  # extra_tokens
        0.494140625,  # nothing_in_common
        1.3125,  # one_token_only
        2.6201171875,  # email_same
        0.93359375,  # email_shared
        -0.3740234375,  # email_other
        5.53515625,  # handle_same
        3.4755859375,  # handle_same_built
        1.8974609375,  # handle_stem
        2.2998046875,  # handle_stem_built
        -1.0869140625,  # handle_other
        3.03125,  # handle_from_name
        3.12109375,  # handle_from_initial
        1.3876953125,  # handle_from_token
        1.21484375,  # handle_year_same
        -0.5126953125,  # handle_year_other
        7.3359375,  # id_same
        4.986328125,  # id_near
        -2.1259765625,  # id_other
        0.716796875,  # year_bits
        -2.361328125,  # year_near
        -4.015625,  # year_other
        0.265625,  # gender_same
        -3.623046875,  # gender_other
        0.2880859375,  # zone_same
        -0.7802734375,  # zone_other
        1.53515625,  # role_same
        -4.4345703125,  # role_other
        0.7216796875,  # groups_same
        0.7978515625,  # groups_other
    ),
    base=4.353515625,
    slope=1.078125,
    rivalry=0.6142578125,
    shift=-0.3515625,
    alone=(1.1298828125, 0.611328125, 1.796875),
)
