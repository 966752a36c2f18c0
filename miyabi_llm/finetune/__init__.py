"""The verb `finetune`: from a recipe to a model that is served, measured and proven to be the one that was trained."""
