"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-8628780ea3d5",
    weights=(
        -2.9130859375,  # exact_count
        0.7333984375,  # exact_bits
        -1.9013671875,  # nickname_count
        0.5751953125,  # nickname_bits
        -2.357421875,  # typo_count
        0.6171875,  # typo_bits
        -2.9267578125,  # sound_count
        0.533203125,  # sound_bits
        0.546875,  # script_count
        0.4033203125,  # script_bits
        0.8583984375,  # initial_count
        -4.5947265625,  # loose_count
        0.5458984375,  # loose_bits
        -0.390625,  # joined_count
        0.3486328125,  # joined_bits
        2.5859375,  # in_handle_count
        0.0712890625,  # in_handle_bits
        -5.8369140625,  # conflict_one
        -10.947265625,  # conflict_more
        -2.6171875,  # conflict_script
        -1.4189453125,  # extra_tokens
        -0.2919921875,  # nothing_in_common
        0.541015625,  # one_token_only
        2.689453125,  # email_same
        0.3466796875,  # email_shared
        -0.31640625,  # email_other
        5.08203125,  # handle_same
        3.986328125,  # handle_same_built
        1.7294921875,  # handle_stem
        2.435546875,  # handle_stem_built
        -1.2626953125,  # handle_other
        3.5029296875,  # handle_from_name
        3.439453125,  # handle_from_initial
        1.560546875,  # handle_from_token
        9.4423828125,  # id_same
        3.48828125,  # id_near
        -2.8427734375,  # id_other
        0.69140625,  # year_bits
        -2.98046875,  # year_near
        -5.0732421875,  # year_other
        0.18359375,  # gender_same
        -3.9765625,  # gender_other
        0.5107421875,  # zone_same
        -0.81640625,  # zone_other
        1.8505859375,  # role_same
        -4.75,  # role_other
        0.7763671875,  # groups_same
        1.0859375,  # groups_other
    ),
    base=5.30859375,
    slope=1.0576171875,
    rivalry=0.640625,
    shift=-0.62109375,
    alone=(1.099609375, 0.640625, 1.7421875),
)
