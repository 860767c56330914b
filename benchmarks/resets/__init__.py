"""The cost of episodes within sequences, and of the alternatives to them: ``python -m benchmarks.resets``.

``cases`` defines the measurements: the share of all steps that begin an episode, and the ways to run them, ours and the
usual ones with torch.nn. ``check`` judges the results of a way, ``measuring`` times all of them in a process of its
own, ``__main__`` starts that and writes the results, ``report`` presents them.
"""
