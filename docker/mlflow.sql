-- MLflow's tables and Optuna's have names in common.
CREATE DATABASE mlflow;
