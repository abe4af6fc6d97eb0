"""How a search decides: which candidate goes on at a rung, and which is tried next. It knows Optuna, and no study.

ladder      the rungs of a study: after how many steps candidates are compared
promotion   which candidates go on from a rung, and which wait there
"""
