"""Programs over a mesh of devices: layouts, what they cost, who chooses them, and what carries them out.

What devices are, and how arrays lie on them:
    meshes: named axes, their sizes, and what connects the devices along each.
    multislice: meshes over several slices or nodes.
    layouts: how an array lies on a mesh.
    collectives: what devices send one another, and how long it takes.
    resharding: the collectives from one layout to another.

What a program says:
    factors: of each operation, which dimensions are split together.
    roles: which inputs are parameters, the optimiser's state, a batch.
    ties: values that are one array, as a loop's carry before, in and after it.
    demands: the user's constraints and `jax.shard_map`.
    annotations: layouts as users write them.

Who chooses:
    presets: well-known ways to spread a program.
    solver: layouts by an integer program.
    strategies: which axes split which factor of an operation.
    propagation: from the layouts of some arrays to those of all.
    spread: the fixpoint behind it.
    placing: how operands and results lie for a choice of axes.
    prediction: what a program costs, without compiling.

What carries it out, and shows it:
    constraints: layouts written into a program.
    plan: plans to be read, drawn, kept and compared.
    aot: compiling for devices that are not there.
    pipeline: layers on different devices.
    compressed: collectives that carry less.
    processes: several processes that find one another and end together.
    consistency: whether copies hold the same bits.
    local: real processes on this machine, to try what crosses processes.
    union_find: sets that grow together.
"""
