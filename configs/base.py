"""Every setting, once, with its unit, range and place in the paper.

The values are the paper's for CIFAR-10 (section 4.1). The other files of this folder
override a few of them; so does the command line: `--config.lambda_intra=0`.

A setting added later has a value here that does what was done before: a run of an older
version, whose config.json lacks it, is taken to have that value.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # all randomness (weights, bank, order, views) follows from it; >= 0
    # Passes over the training images, of one round; 0: the untrained encoder is saved.
    c.num_epochs = 200
    # Rounds of num_epochs each ("2Rs", "5Rs" of Table 2): the learning rate starts
    # anew; weights, bank, momentum and batch-norm statistics stay. >= 1
    c.num_rounds = 1
    c.batch_size = 128  # instances a step, over all devices together

    # The system that is trained. With a memory bank: 'iraug', -log(p_i + q_i), Eq. 2-3
    # to the letter; 'iraug_sum', -log p_i - log q_i; 'ir', -log p_i, view 1 alone
    # (Eq. 1); and of view 1 alone 'ir_nce', 'cmc' (model.towers='lab'), 'and'
    # (neighbours found each round) and 'clusters' (found each epoch). EIR is 'iraug'
    # with both terms below.
    # Within the batch: 'isif', 'isif_augmented' (after aISIF) and 'simclr' (its
    # model.head is 'mlp_bn', its temperature .5). With a queue: 'moco' and 'eir_moco'
    # (the authors' release of 2022, whose terms have weights of their own). With
    # labels: 'supervised', which needs model.num_classes, or with those of k-means each
    # epoch: 'deepcluster', whose model.num_classes is clusters.count.
    c.objective = "iraug"
    # The two terms below on top of 'isif', 'simclr' or 'moco' too; where there is a
    # bank they always are. So objective=simclr alone is SimCLR, whatever lambda is.
    c.on_top = False
    # Eq. 10: the system's loss + lambda_intra * intra + lambda_inter * inter.
    c.temperature = 0.1  # tau of Eq. 1, 2, 6 and 9; > 0
    c.lambda_intra = 15.0  # lambda_1; >= 0, 0 leaves the term out
    c.lambda_inter = 2.0  # lambda_2; >= 0, 0 leaves the term out
    c.intra = ConfigDict()
    # Of the two distributions in Eq. 6; > 0. 1 is the letter of Eq. 4-5, which print
    # bare cosines; what pulls is lambda_intra / temperature^2.
    c.intra.temperature = 1.0
    c.intra.target_temperature = 0.0  # of view 1's distribution alone; 0: the same
    c.intra.own_row = True  # the instance's own row takes part in Eq. 4-5
    c.intra.stop_gradient = False  # no gradient into view 1's distribution
    c.intra.symmetric = False  # mean of KL(p||q) and KL(q||p)
    c.intra.ramp_steps = 0  # steps over which lambda_intra grows from 0; 0: at once
    c.inter = ConfigDict()
    c.inter.negatives = (
        "batch"  # Eq. 9's j over the 'batch' or the memory 'bank' (queue)
    )
    c.inter.stop_gradient = False  # no gradient into the mixed target of Eq. 8
    c.inter.literal = False  # Eq. 9 to the letter: the sum over k inside the log
    c.inter.ramp_steps = 0  # steps over which lambda_inter grows from 0; 0: at once
    c.interpolation = ConfigDict()  # the mixed image of Eq. 7
    c.interpolation.kind = "cutmix"  # 'cutmix' or 'mixup'
    c.interpolation.alpha = 1.0  # ratio ~ Beta(alpha, alpha); > 0
    c.interpolation.per_sample = False  # one ratio an image instead of one a batch

    # Memory bank, section 3.1: row <- l2((1 - m) * embedding + m * row).
    c.bank_momentum = 0.5  # m; in [0, 1)
    c.bank = ConfigDict()
    # How the softmax over all N rows is computed, with the same numbers: 'dense' holds
    # [batch, N] arrays, 'streamed' a block of rows at a time; 'auto': the faster one.
    # 'fused' is the streamed one as one kernel of a GPU or TPU, not timed on either.
    c.bank.form = "auto"
    c.bank.dtype = "float32"  # rows are stored in: 'float32' or 'bfloat16'

    # Queue of 'moco' and 'eir_moco'. That the batch is shuffled before keys are made of
    # it hides what batch norm would tell only where batch_norm.groups is 2 or more.
    c.queue = ConfigDict()
    # Keys; best a multiple of batch_size, and at most a quarter of the images.
    c.queue.size = 4096
    c.queue.key_momentum = 0.99  # of the key encoder's moving average; in [0, 1)

    c.nce = ConfigDict()  # of 'ir_nce'
    c.nce.negatives = 4096  # rows drawn for each instance
    # Of Z's moving average; in [0, 1]. 1, as released: the first batch's, for ever.
    c.nce.z_momentum = 1.0
    c.isif_augmented = ConfigDict()  # in features; aISIF's own are not public
    c.isif_augmented.interpolation = 0.5  # share of one in a mixed negative; in [0, 1]
    c.isif_augmented.extrapolation = 0.5  # of the positive, away from the anchor; >= 0
    c.neighbours = ConfigDict()  # of 'and'
    # Round r gives so many times r of the images a neighbour; in (0, 1].
    c.neighbours.share = 0.25
    c.clusters = ConfigDict()  # of 'clusters' and 'deepcluster'
    c.clusters.count = 1000  # at most the images
    c.clusters.iterations = 20  # of k-means
    # Of 'clusters' alone: for so many epochs ISIF's loss, by two views, stands beside
    # that of the clusters, whose share grows from .2 to .5; 0: never. The code of PCP,
    # by authors of EIR, has 180 of 200; whether Table 5's row has them is not public.
    c.clusters.isif_epochs = 0
    # Of 'deepcluster' alone: principal components of the features, whitened, among
    # which k-means looks, at most; 0: the features as they are.
    c.clusters.components = 256

    # Encoder f_theta.
    c.model = ConfigDict()
    # 'resnet18', 'resnet10' (one block a stage), 'resnet6' (two such stages in place of
    # four, for pictures of a few pixels), 'resnet34' or 'resnet50' (bottlenecks, four
    # times as wide where they end).
    c.model.name = "resnet18"
    c.model.width = 64  # channels of the first stage; each next one has twice as many
    c.model.stem = "small"  # 'small': 3x3 stride 1; 'imagenet': 7x7 stride 2 and pool
    c.model.embedding_dim = 128  # D
    # Between the average pool and the unit vector: 'linear', 'mlp' (Linear-ReLU-Linear,
    # MoCo v2) or 'mlp_bn' (Linear-BN-ReLU-Linear, SimCLR), as wide as the feature.
    c.model.head = "linear"
    # 'one' network, or 'lab' for two, of half the width and half the embedding each: of
    # an image's lightness and of its colours, as objective=cmc trains them.
    c.model.towers = "one"
    # Of the linear classifier of 'supervised' and 'deepcluster'; 0: there is none.
    c.model.num_classes = 0
    # Of the kernels of convolutions: 'pytorch' U(+-1/sqrt(fan_in)), its default, or
    # 'he' N(0, 2/fan_out), as torchvision's ResNets; the head is PyTorch's either way.
    c.model.init = "pytorch"
    # The backbone begins as this one, head and bank anew: the workdir of a run, a
    # .safetensors, or a .pth (torchvision's names); '': all begins by the seed.
    c.model.weights = ""
    # What training computes the convolutions in: 'float32', 'bfloat16', or 'auto':
    # 'bfloat16' on accelerators. Parameters, statistics, losses, the bank's products
    # and all of evaluation are float32, evaluation at the highest precision.
    c.model.dtype = "auto"
    # Of products of float32 numbers in convolutions: 'default' is the device's fastest
    # (TF32 on GPUs, one bfloat16 pass on TPUs), then 'high' and 'highest' (exact).
    c.model.precision = "default"
    # A run of a folder goes on as one of the same folder grown: the workdir of the
    # former. Encoder and head, and the bank's rows of the pictures that both have, are
    # kept; '': all begins by the seed.
    c.grow_from = ""
    c.batch_norm = ConfigDict()
    c.batch_norm.groups = (
        1  # the batch is normalised in so many parts (GPUs, elsewhere)
    )
    # Which images share statistics: 'views' (both views; the mixed ones apart),
    # 'all' (both views and the mixed ones), 'none' (each of the three apart).
    c.batch_norm.sharing = "views"

    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd"  # or 'lars', SimCLR's
    c.optimizer.learning_rate = 0.03  # > 0
    # By 'milestones' it is rate * factors[k] from epoch milestones[k] on (counted from
    # 0); by 'cosine' it falls to 0 at the round's end. Before, it grows from 0.
    c.optimizer.schedule = "milestones"
    c.optimizer.warmup_epochs = 0  # >= 0, less than num_epochs
    c.optimizer.milestones = (120, 160)  # epochs, increasing
    c.optimizer.factors = (0.1, 0.01)  # of the initial rate
    c.optimizer.momentum = 0.9  # in [0, 1)
    c.optimizer.nesterov = False
    c.optimizer.weight_decay = 5e-4  # on every parameter

    # Images.
    c.data = ConfigDict()
    c.data.source = "tfds"  # 'digits', 'arrays' (an .npz file), 'tfds' or 'folder'
    c.data.name = "cifar10"  # of the data set; for 'tfds' the builder's name
    c.data.path = ""  # the .npz file, the folder, or the TFDS data_dir ('': its own)
    c.data.image_size = 32  # pixels, height and width that the encoder sees
    # Pixels: an image is first brought to a square of this side, of which test views
    # are the centre; 0: image_size. In the files for 224 px it is 8/7 of image_size and
    # follows that, until it is given itself. How: 'crop' (the shorter side is resized,
    # then the centre is taken; training views are cut from the whole image where it is
    # kept encoded) or 'squash' (both sides are resized).
    c.data.resize = 0
    c.data.fit = "crop"
    # What stays in memory: the 'pixels' of the square, or the 'encoded' file (or where
    # it lies), from which each view is decoded anew: for more images than fit.
    c.data.keep = "pixels"
    # Of a folder: 'folders' (a class each), 'none' (every picture at any depth), or
    # 'auto': none where pictures stand beside folders.
    c.data.labels = "auto"
    c.data.broken = "skip"  # files that hold no picture: 'skip' or 'error'
    # Which part is which: splits of TFDS ('train+unlabelled'), and the classes kept, as
    # (first, after the last) counted from 0; (0, 0): all.
    c.data.train_split = "train"
    c.data.test_split = "test"
    c.data.train_classes = (0, 0)
    c.data.test_classes = (0, 0)
    c.data.class_list = ""  # a file with the names of the classes kept, one a line
    # Where there is no test split: the share of each class of train that becomes it, in
    # [0, 1), chosen by a seed of its own, so that all runs are judged by the same; 0:
    # none, all images train, and kNN and retrieval are measured within train.
    c.data.held_out = 0.0
    c.data.held_out_seed = 0
    c.data.expected = (0, 0)  # train and test images; a difference is said; 0: any
    # Where views are made: 'tf.data' on the host, or 'device' inside the step, the
    # images as uint8 in the accelerator's memory ('replicated' or 'sharded').
    c.data.pipeline = "tf.data"
    c.data.placement = "replicated"
    c.data.mean = (0.4914, 0.4822, 0.4465)  # of a channel in [0, 1]
    c.data.std = (0.2023, 0.1994, 0.2010)

    # A training view: crop -> colour jitter -> grey -> flip -> normalise.
    c.views = ConfigDict()
    c.views.crop_area = (0.2, 1.0)  # share of the image's area, uniform
    c.views.crop_aspect = (3 / 4, 4 / 3)  # width / height, log-uniform
    c.views.jitter = 1.0  # probability of the four below, in random order
    c.views.brightness = 0.4  # factor uniform in [1 - x, 1 + x]
    c.views.contrast = 0.4
    c.views.saturation = 0.4
    c.views.hue = 0.4  # shift uniform in [-x, x] turns; <= .5
    c.views.grey = 0.2  # probability
    c.views.flip = 0.5  # probability

    # Evaluation, section 4.1.
    c.knn = ConfigDict()
    c.knn.k = (5, 20, 200)  # neighbours that vote; `best` follows the last
    c.knn.temperature = 0.1  # a neighbour's weight is exp(cosine / temperature)
    c.retrieval = ConfigDict()
    c.retrieval.k = (1, 2, 4, 8)  # R@K
    # Rows times classes up to which NMI is measured: its k-means takes about a minute
    # for so many on a core; 0: never.
    c.retrieval.nmi_limit = 20_000_000
    c.linear = ConfigDict()  # linear probe on the frozen feature before the head
    c.linear.pooled_map = False  # the last map pooled 2x2 (4,608-d at 224 px) instead
    c.linear.augment = False  # 'sgd' sees fresh training views, as the predecessors'
    c.linear.solver = "sgd"  # or 'lbfgs': the minimum of the same objective
    c.linear.learning_rates = (0.003, 0.01, 0.03, 0.1)  # chosen on held-out train
    c.linear.weight_decays = (1e-4, 1e-3, 1e-2)  # likewise
    c.linear.held_out = 0.1  # share of each class of train that chooses
    c.linear.standardize = True  # each feature to mean 0 and deviation 1 on train
    c.linear.num_epochs = 50  # of 'sgd'
    c.linear.batch_size = 256
    c.linear.seed = 0  # of the held-out split and the order
    c.paper = ConfigDict()  # the paper's row of EIR, set beside ours in the report
    c.evaluation_batch_size = 500  # images embedded at a time

    # Records.
    c.log_every_steps = 50
    # Of what is printed where that is no terminal, a log say; > 0.
    c.progress_every_seconds = 60.0
    c.eval_every_epochs = 10  # kNN (R@K of unseen classes) while training; 0: never
    c.checkpoint_every_epochs = 10
    # Newest ones kept, beside the best and, of several rounds, each one's end; >= 1
    c.keep_checkpoints = 2
    # Batches that may be left out because a loss is not finite, each time from the last
    # checkpoint on, before the run stops; 0: it stops at the first.
    c.skip_not_finite = 0
    # 'a:b': a profiler's trace of the steps a to b, both included, counted from 1 (the
    # first one of a start compiles), in workdir/profile; '': none.
    c.profile_steps = ""
    return c
