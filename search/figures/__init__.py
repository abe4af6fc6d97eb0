"""What is drawn of a study or an export. It knows trials and no database.

catalogue  which figures a study gets, in the report and on the dashboard
charts     the figures of a study (Plotly)
style      their common look
timeline   who trained which trial when, and where workers crashed
png        the figures of an export and of `lr-range` (Matplotlib)
"""
