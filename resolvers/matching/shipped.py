"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-980cc2797fa1",
    weights=(
        -3.0419921875,  # exact_count
        0.76171875,  # exact_bits
        -3.203125,  # nickname_count
        0.65625,  # nickname_bits
        -5.5556640625,  # typo_count
        0.8720703125,  # typo_bits
        -2.43359375,  # sound_count
        0.4755859375,  # sound_bits
        -0.0576171875,  # script_count
        0.478515625,  # script_bits
        1.0361328125,  # initial_count
        1.6171875,  # in_handle_count
        0.158203125,  # in_handle_bits
        -5.6279296875,  # conflict_one
        -9.9521484375,  # conflict_more
        -2.306640625,  # conflict_script
        -1.3671875,  # extra_tokens
        -0.140625,  # nothing_in_common
        0.5810546875,  # one_token_only
        3.759765625,  # email_same
        0.3505859375,  # email_shared
        -0.326171875,  # email_other
        5.7412109375,  # handle_same
        4.0478515625,  # handle_same_built
        1.7421875,  # handle_stem
        2.36328125,  # handle_stem_built
        -1.126953125,  # handle_other
        3.201171875,  # handle_from_name
        3.19921875,  # handle_from_initial
        1.484375,  # handle_from_token
        11.9560546875,  # id_same
        3.7578125,  # id_near
        -2.84765625,  # id_other
        2.599609375,  # year_same
        -2.798828125,  # year_near
        -4.9853515625,  # year_other
        0.375,  # gender_same
        -3.5546875,  # gender_other
        0.4873046875,  # zone_same
        -0.7626953125,  # zone_other
        1.8056640625,  # role_same
        -4.7060546875,  # role_other
        0.4248046875,  # groups_same
        1.5693359375,  # groups_other
    ),
    base=4.29296875,
    slope=1.1533203125,
    rivalry=0.759765625,
    shift=2.69140625,
)
