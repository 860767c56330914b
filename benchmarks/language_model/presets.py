"""Published settings by name, as defaults of the command line's options.

The text must be given in addition: ``--text ptb.train.txt --valid ptb.valid.txt --test ptb.test.txt`` for Zaremba
et al., whose gradient is that of the sum over the steps; one file for char-rnn.
"""

ZAREMBA = {
    "alphabet": "words",
    "cell": ["lstm"],
    "layers": 2,
    "batch": 20,
    "loss_per": "sequence",
    "optimiser": "sgd",
    "lr": 1.0,
    "clip": 5.0,
}

PRESETS = {
    # Zaremba, Sutskever & Vinyals 2014, Recurrent neural network regularization; its baseline without dropout
    "zaremba-small": {
        **ZAREMBA,
        "hidden": 200,
        "bptt": 20,
        "init": 0.1,
        "epochs": 13,
        "decay_after": 4,
        "decay": 0.5,
    },
    # the same, medium: dropout of half of all connections that are not recurrent
    "zaremba-medium": {
        **ZAREMBA,
        "hidden": 650,
        "bptt": 35,
        "init": 0.05,
        "dropout": 0.5,
        "epochs": 39,
        "decay_after": 6,
        "decay": 1 / 1.2,
    },
    # Karpathy 2015, the defaults of char-rnn, which bounds each value of the gradient, and evaluates on the end of each
    # stream, because tiny Shakespeare's last scenes, from a play of their own, are harder than the rest
    "char-rnn": {
        "alphabet": "bytes",
        "cell": ["lstm"],
        "layers": 2,
        "hidden": 128,
        "batch": 50,
        "bptt": 50,
        "held_out": 0.05,
        "held_out_from": "streams",
        "init": 0.08,
        "optimiser": "rmsprop",
        "lr": 0.002,
        "epochs": 50,
        "decay_after": 10,
        "decay": 0.97,
        "clip": 5.0,
        "clip_by": "value",
    },
}
