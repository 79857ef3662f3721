"""Run each kind of job, and define the directories, events and fences of jobs."""
