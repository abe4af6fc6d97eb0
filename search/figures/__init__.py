"""Figures of a study or an export. It is given trials, and opens no database.

catalogue  the list of a study's figures, for the report and the dashboard
charts     the figures of a study (Plotly)
style      the common style of the figures
timeline   the times at which each worker trained each trial, and crashes
mistakes   the most confident mistakes of an export (Matplotlib)
ranks      the ranks of a layer's feature maps, of an export (Matplotlib)
sizes      the charts of value against parameters, and against GFLOPs
confusion  the file of the best trial's confusion matrix
png        the figures of an export and of the best trial (Matplotlib)
"""
