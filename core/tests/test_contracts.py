"""Core's own components and the tiny ones, held to the contracts for plugin authors; and components that break them."""

import itertools
from types import SimpleNamespace

import pytest

from arctic_training import LossSum
from arctic_training.checkpoint import EngineCheckpoint
from arctic_training.loss import LossFactory, cross_entropy
from arctic_training.optimizer import AdamWFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.testing import (
    CheckpointEngineContract,
    DataFactoryContract,
    DataSourceContract,
    EngineContract,
    LossFactoryContract,
    ModelFactoryContract,
    OptimizerFactoryContract,
    SchedulerFactoryContract,
    TinyDataFactory,
    TinyModelFactory,
    TinySource,
    TinyTokenizerFactory,
    TinyTrainer,
    TokenizerFactoryContract,
    TrainerContract,
)
from arctic_training.testing.contracts.common import KeepsWeights


class MeanTrainer(TinyTrainer):
    """Returns what a user would write first, a mean."""

    name = "mean"

    def loss(self, batch):
        total, weight = super().loss(batch)
        return total / weight


class TestTinyTrainer(TrainerContract):
    pass


class TestTrainerWhoseLossIsAMean(TrainerContract):
    @pytest.fixture
    def components(self):
        return [MeanTrainer]

    @pytest.fixture
    def recipe(self, tiny_recipe):
        return tiny_recipe | {"type": "mean"}


class TestTinyTokenizer(TokenizerFactoryContract):
    pass


class TestTinyModel(ModelFactoryContract):
    pass


class TestTinySource(DataSourceContract):
    pass


class TestTinyData(DataFactoryContract):
    pass


class TestCrossEntropy(LossFactoryContract):
    pass


class TestAdamW(OptimizerFactoryContract):
    pass


class TestConstantSchedule(SchedulerFactoryContract):
    pass


class TestTorchEngine(EngineContract):
    pass


class TestEngineCheckpoint(CheckpointEngineContract):
    pass


# What a contract is for: each of these components breaks one promise, and the test named beside it must see it.


DRAWS = itertools.count()


class AveragesMicroBatches(TinyTrainer):
    name = "broken"

    def normalised_loss(self, batch, global_weight):
        total, weight = self.loss(batch)
        return total / weight / self.config.gradient_accumulation_steps


class ForgetsWhereItStands(TinyTrainer):
    name = "broken"
    steps_seen = 0

    def loss(self, batch):
        self.steps_seen += 1
        total, weight = super().loss(batch)
        return LossSum(total * self.steps_seen, weight)


class CountsEmptyBatches(TinyTrainer):
    name = "broken"

    def normalised_loss(self, batch, global_weight):
        return super().normalised_loss(batch, global_weight) + 0.1 * self.model.output.bias.square().sum() + 1


class TrainsWhileItEvaluates(TinyTrainer):
    name = "broken"

    def evaluate(self):
        import torch

        with torch.no_grad():
            self.model.output.bias.add_(0.1)
        return super().evaluate()


class HasAnAddressForAFingerprint(TinyTokenizerFactory):
    name = "broken"

    def fingerprint(self, tokenizer):
        return f"tokenizer at {next(DRAWS)}"


class LosesCapitals(TinyTokenizerFactory):
    name = "broken"

    def create_tokenizer(self):
        return SimpleNamespace(encode=lambda text: list(text.lower().encode()), decode=lambda ids: bytes(ids).decode())


class SeesTheFuture(TinyModelFactory):
    name = "broken"

    def create_model(self, config):
        model = super().create_model(config)
        model.embedding.register_forward_hook(lambda module, arguments, output: output + output.mean(1, keepdim=True))
        return model


class HasALooseParameter(TinyModelFactory):
    name = "broken"

    def create_model(self, config):
        import torch

        model = super().create_model(config)
        model.loose = torch.nn.Parameter(torch.zeros(2))
        return model


class LoadsOtherRowsEachTime(TinySource):
    name = "broken"

    def load(self, config, split):
        return [{"text": f"{next(DRAWS)} {number}"} for number in range(16)]


class StreamsFromItsBeginning(TinySource):
    name = "broken"

    def stream(self, config, split):
        stream = super().stream(config, split)
        stream.seek = lambda position: None
        return stream


class TrainsTheFirstToken(TinyDataFactory):
    name = "broken"

    def process(self, dataset):
        return [row | {"labels": row["input_ids"]} for row in super().process(dataset)]


class NeverCuts(TinyDataFactory):
    name = "broken"

    @property
    def max_length(self):
        return 10_000


class TrainsPadding(TinyDataFactory):
    name = "broken"

    def collate(self, rows):
        batch = super().collate(rows)
        return batch | {"labels": batch["labels"].where(batch["input_ids"] < 256, batch["input_ids"])}


class SumsMeans(LossFactory):
    name = "broken"

    def create_loss(self):
        def loss(model, batch):
            total, weight = cross_entropy(model, batch)
            return LossSum(total / weight, weight)

        return loss


class LeavesOutVectors(AdamWFactory):
    name = "broken"

    def parameter_groups(self, model):
        return super().parameter_groups(model)[:1]


class KeepsItsCountToItself(SchedulerFactory):
    name = "broken"

    def create_scheduler(self, optimizer):
        import torch

        calls = iter(range(1000))
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + next(calls)))


class WritesBesideItsDirectory(EngineCheckpoint):
    name = "broken"

    def save(self, model):
        super().save(model)
        (self.checkpoint_dir.parent / "latest").write_text(self.checkpoint_dir.name)


class LoadsNothing(EngineCheckpoint):
    name = "broken"

    def load(self, model):
        pass


BROKEN = [
    (AveragesMicroBatches, TrainerContract, "test_a_step_does_not_depend_on_the_split_into_micro_batches"),
    (ForgetsWhereItStands, TrainerContract, "test_training_goes_on_exactly_where_it_stopped"),
    (CountsEmptyBatches, TrainerContract, "test_a_micro_batch_with_nothing_to_train_adds_nothing"),
    (TrainsWhileItEvaluates, TrainerContract, "test_evaluation_leaves_training_as_it_is"),
    (HasAnAddressForAFingerprint, TokenizerFactoryContract, "test_the_same_recipe_gives_the_same_ids_and_fingerprint"),
    (LosesCapitals, TokenizerFactoryContract, "test_text_survives_being_tokenised"),
    (SeesTheFuture, ModelFactoryContract, "test_a_prediction_does_not_see_the_tokens_behind_it"),
    (HasALooseParameter, ModelFactoryContract, "test_every_trained_parameter_gets_a_gradient"),
    (LoadsOtherRowsEachTime, DataSourceContract, "test_it_gives_the_same_rows_each_time"),
    (StreamsFromItsBeginning, DataSourceContract, "test_its_stream_gives_the_rows_of_load_from_any_position"),
    (TrainsTheFirstToken, DataFactoryContract, "test_the_first_token_of_a_document_is_never_trained"),
    (NeverCuts, DataFactoryContract, "test_no_row_is_longer_than_max_length"),
    (TrainsPadding, DataFactoryContract, "test_a_micro_batch_trains_exactly_the_tokens_of_its_rows"),
    (SumsMeans, LossFactoryContract, "test_a_batch_costs_what_its_rows_cost_alone"),
    (LeavesOutVectors, OptimizerFactoryContract, "test_it_has_every_trained_parameter_once"),
    (KeepsItsCountToItself, SchedulerFactoryContract, "test_its_state_goes_on"),
    (WritesBesideItsDirectory, CheckpointEngineContract, "test_it_writes_only_inside_its_directory"),
    (LoadsNothing, CheckpointEngineContract, "test_it_loads_what_it_saved_or_refuses"),
]


@pytest.mark.parametrize(("component", "contract", "test"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_contract_sees_the_component_that_breaks_it(component, contract, test, request, tiny_recipe, plugin_manager):
    plugin_manager.register(KeepsWeights(), "weights kept")
    plugin_manager.register_classes([component], "broken components")
    kind = component.kind
    if kind == "trainer":
        recipe = tiny_recipe | {"type": "broken"}
    elif kind == "data_source":
        recipe = tiny_recipe | {"data": tiny_recipe["data"] | {"sources": [{"type": "broken"}]}}
    elif kind == "checkpoint":
        recipe = tiny_recipe | {"checkpoint": {"type": "broken", "output_dir": "out"}}
    else:
        recipe = tiny_recipe | {kind: tiny_recipe.get(kind, {}) | {"type": "broken"}, "skip_validation": True}
    known = {"recipe": recipe, "text": "Seven times 7 is 49.", "micro_batch_size": 1, "accumulation": 4}
    method = getattr(contract(), test)
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    arguments = {name: known[name] if name in known else request.getfixturevalue(name) for name in wanted}
    with pytest.raises(AssertionError):
        method(**arguments)
