"""EIR's terms on top of other systems: each alone, + intra, + inter, and with both.

"Can be easily inserted into existing view-invariant contrastive learning based methods"
(the paper): here it is three settings. The candidates are the other instances' views in
the batch, and MoCo's queue.
"""

from eir_jax.configs.grids import systems

HOSTS = {name: systems.GRID[name] for name in ("ISIF", "SimCLR", "MoCo")}
TERMS: dict[str, dict] = {
    "": {},
    "_intra": {"on_top": True, "lambda_inter": 0.0},
    "_inter": {"on_top": True, "lambda_intra": 0.0},
    "_EIR": {"on_top": True},
}
GRID = {
    host + name: settings | terms
    for host, settings in HOSTS.items()
    for name, terms in TERMS.items()
}
