"""Many runs: evaluated, swept over grids, set in tables beside the paper's."""
