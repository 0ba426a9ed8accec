"""Many trainings and measurements, each kept: started again, they go on where they were."""
