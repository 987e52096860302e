"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-fade5a626458",
    weights=(
        -3.6435546875,  # exact_count
        0.875,  # exact_bits
        -2.052734375,  # nickname_count
        0.6748046875,  # nickname_bits
        -2.4306640625,  # typo_count
        0.7119140625,  # typo_bits
        -3.376953125,  # sound_count
        0.787109375,  # sound_bits
        -2.490234375,  # script_count
        0.5595703125,  # script_bits
        1.7177734375,  # initial_count
        -4.916015625,  # loose_count
        0.607421875,  # loose_bits
        -0.0185546875,  # joined_count
        0.673828125,  # joined_bits
        -2.7802734375,  # reading_count
        0.7734375,  # reading_bits
        -0.134765625,  # consonants_count
        0.197265625,  # consonants_bits
        -2.587890625,  # vowels_count
        0.7509765625,  # vowels_bits
        0.9951171875,  # in_handle_count
        0.3115234375,  # in_handle_bits
        -4.5087890625,  # conflict_one
        -9.2939453125,  # conflict_more
        -4.556640625,  # conflict_script
        -3.5380859375,  # conflict_consonants
        -1.287109375,  # extra_tokens
        0.51171875,  # nothing_in_common
        1.3564453125,  # one_token_only
        2.615234375,  # email_same
        0.927734375,  # email_shared
        -0.373046875,  # email_other
        5.533203125,  # handle_same
        3.484375,  # handle_same_built
        1.890625,  # handle_stem
        2.30859375,  # handle_stem_built
        -1.0947265625,  # handle_other
        3.0458984375,  # handle_from_name
        3.1337890625,  # handle_from_initial
        1.3974609375,  # handle_from_token
        1.2041015625,  # handle_year_same
        -0.513671875,  # handle_year_other
        7.33984375,  # id_same
        4.990234375,  # id_near
        -2.1279296875,  # id_other
        0.72265625,  # year_bits
        -2.3515625,  # year_near
        -3.99609375,  # year_other
        0.279296875,  # gender_same
        -3.62109375,  # gender_other
        0.2861328125,  # zone_same
        -0.7841796875,  # zone_other
        1.5341796875,  # role_same
        -4.4345703125,  # role_other
        0.720703125,  # groups_same
        0.7998046875,  # groups_other
    ),
    base=4.25390625,
    slope=1.076171875,
    rivalry=0.615234375,
    shift=-0.34375,
    alone=(1.1279296875, 0.611328125, 1.78515625),
)
