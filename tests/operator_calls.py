"""Every operator with small arguments, for tests that go through all of them."""

import numpy as np

IMAGE = (2, 4, 6, 3)
LABELS = np.random.default_rng(0).integers(0, 3, IMAGE[:3])
INDEX = np.random.default_rng(0).integers(0, 6, IMAGE)

# name: (shapes of the arrays with a gradient, the other arguments by keyword)
CALLS = {
    "adaptive_avg_pool2d": ([IMAGE], {"size": (3, 2)}),
    "adaptive_max_pool2d": ([IMAGE], {"size": (3, 2)}),
    "add": ([IMAGE, (6, 1)], {}),
    "avg_pool2d": ([IMAGE], {"kernel": (2, 3), "padding": 1, "count_include_pad": False}),
    "balanced_edge_loss": ([IMAGE], {"edges": INDEX > 3}),
    "batch_norm": ([IMAGE, (3,), (3,)], {"relu": True}),
    "bce_with_logits": ([IMAGE], {"targets": (INDEX > 2).astype(np.float64)}),
    "cast": ([IMAGE], {"dtype": np.float64}),
    "concat": ([IMAGE, (2, 4, 6, 1), (2, 4, 6, 2)], {}),
    "conv2d": ([IMAGE, (3, 2, 3, 4), (4,)], {"stride": 2, "padding": 1}),
    "conv_transpose2d": ([IMAGE, (3, 2, 4, 3), (4,)], {"stride": 2, "padding": 1}),
    "crop": ([IMAGE], {"sides": (1, 2, 0, 3)}),
    "cross_entropy": ([IMAGE], {"labels": LABELS, "ignore_label": 2}),
    "dice": ([IMAGE], {"labels": LABELS}),
    "dropout": ([IMAGE], {"rate": 0.4, "seed": 3}),
    "dual_task_loss": ([IMAGE], {"labels": LABELS, "seed": 3}),
    "encoding": ([IMAGE, (4, 3), (4,)], {}),
    "gaussian_blur": ([IMAGE], {"sigma": 0.8}),
    "global_avg_pool2d": ([IMAGE], {}),
    "global_max_pool2d": ([IMAGE], {}),
    "gradient_magnitude": ([IMAGE], {}),
    "group_norm": ([IMAGE, (3,), (3,)], {"groups": 3}),
    "gumbel_softmax": ([IMAGE], {"seed": 3}),
    "leaky_relu": ([IMAGE], {"slope": 0.2}),
    "linear": ([IMAGE, (3, 5), (5,)], {}),
    "local_response_norm": ([IMAGE], {"size": 3, "alpha": 0.5}),
    "log_softmax": ([IMAGE], {}),
    "max_pool2d": ([IMAGE], {"kernel": (2, 3), "stride": 1, "padding": 1}),
    "max_unpool2d": ([IMAGE], {"index": INDEX, "kernel": (2, 3)}),
    "mul": ([IMAGE, (2, 4, 6, 1)], {}),
    "pad": ([IMAGE], {"padding": (1, 2, 0, 3), "mode": "reflect"}),
    "relu": ([IMAGE], {}),
    "reshape": ([IMAGE], {"shape": (2, 8, 9)}),
    "resize": ([IMAGE], {"size": (7, 5), "mode": "bilinear", "align_corners": True}),
    "sigmoid": ([IMAGE], {}),
    "slice": ([IMAGE], {"ranges": {1: (1, 3), -1: (0, 1)}}),
    "softmax": ([IMAGE], {}),
    "spatial_gradient": ([IMAGE], {}),
    "tanh": ([IMAGE], {}),
}
TAKES_A_LIST = {"concat"}
"""Of arrays, as the one argument."""
