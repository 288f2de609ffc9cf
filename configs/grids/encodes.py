"""Systems for as many encoded images as 30 epochs of EIR take (configs/pilot.py).

EIR encodes three images an instance: 90 in all. Those that encode two have 45 epochs
for that, IR has 90. The learning rate falls at the paper's shares, 60 and 80 %.
"""

from eir_jax.configs.grids import horizon, systems

EPOCHS = {"IR": 90, "IRaug": 45, "ISIF": 45, "SimCLR": 45, "MoCo": 45, "EIR": 30}
GRID = {
    f"{name}_{epochs}_epochs": horizon.lasting(epochs) | systems.GRID[name]
    for name, epochs in EPOCHS.items()
}
