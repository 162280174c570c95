// SPDX-License-Identifier: Apache-2.0
// firstlight plan: what a load would read and what it can take, without reading.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/synth_source.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/load_floor.h"
#include "firstlight/cli/session.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/mount.h"
#include "firstlight/io/stripe_layout.h"

namespace firstlight::cli {

namespace {

struct PlanCommand {
  std::string out, like, dtype = "bf16", part_size = "4GiB", links;
  double storage_gb_per_s = 0;
  int tp = 0, n_layers = 0;
  bool of_like = false;  ///< an option was given that goes with --like
  bool json = false;
};

double share(uint64_t part, uint64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

LoadPlan plan_of(const PlanCommand& options) {
  if (options.out.empty() == options.like.empty())
    throw Error(ErrorKind::bad_input, "plan: give one of OUT and --like NAME");
  if (options.like.empty() && options.of_like)
    throw Error(ErrorKind::bad_input, "plan: --dtype, --layers and --part-size go with --like: OUT has its own");
  if (options.like.empty()) {
    const Manifest manifest = read_manifest(options.out);
    return plan_load(options.out, options.tp != 0 ? options.tp : default_tp(manifest, 1));
  }
  SynthOptions model;
  model.like = options.like;
  model.n_layers = options.n_layers;
  model.dtype = options.dtype == "fp8" ? DType::f8_e4m3 : DType::bf16;
  return plan_source(*synth_source(model), options.tp != 0 ? options.tp : 1,
                     parse_size(options.part_size, "--part-size"));
}

void print_rank(const PlanRank& rank) {
  print(str("rank ", rank.rank, ": ", human_bytes(static_cast<double>(rank.bytes)), " in ", rank.n_parts,
            rank.n_parts == 1 ? " part, " : " parts, ", rank.n_reads, rank.n_reads == 1 ? " read, " : " reads, ",
            rank.n_leaves, " leaves; ", share(rank.aligned_bytes, rank.bytes), " % of the bytes in whole pages\n"));
}

void print_floor(const LoadFloor& floor, const LoadHardware& hardware, uint64_t bytes, size_t n_ranks) {
  if (floor.seconds == 0) {
    print(str("floor: not measured here; at 1 GB/s ", human_seconds(static_cast<double>(bytes) / 1e9), ", at 10 GB/s ",
              human_seconds(static_cast<double>(bytes) / 1e10), " (or give --storage-gbs and --links)\n"));
    return;
  }
  std::string parts;
  if (hardware.storage > 0)
    parts += str("all bytes at ", human_bytes(hardware.storage), "/s ", human_seconds(floor.storage_s));
  if (hardware.link > 0) {
    parts += str(parts.empty() ? "" : "; ", "the largest rank at ", human_bytes(hardware.link), "/s ",
                 human_seconds(floor.links_s));
  }
  print(str("floor: ", human_seconds(floor.seconds), " (", parts, ")\n"));
  print(str("expected, exec to all ranks loaded: ", human_seconds(floor.expected_s), " (", 100 * share_reached(n_ranks),
            " % of these rates, rank r from context r on, ", human_seconds(kContextSeconds), " each)\n"));
}

/// What is special about reading from where the parts lie; "" on a local disk.
std::string order_of(const fs::path& out, int tp) {
  std::vector<std::string> files;
  const Manifest manifest = read_manifest(out);
  for (const ManifestRank& rank : manifest.find_tp(tp)->ranks) {
    for (const ManifestPart& part : rank.parts) files.push_back((out / part.file).native());
  }
  const Mount mount = mount_of(out);
  if (!is_network(mount)) return "";
  return str("storage: ", mount.type, " ", mount.source, describe(find_stripe_layouts(files)), "\n");
}

int run_plan(Context& context, const PlanCommand& options) {
  context.json = options.json;
  LoadHardware hardware;
  hardware.storage = options.storage_gb_per_s * 1e9;
  if (!options.links.empty()) parse_links(options.links, hardware);
  const LoadPlan plan = plan_of(options);
  uint64_t bytes = 0, arena = 0;
  std::vector<uint64_t> rank_bytes;
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const PlanRank& rank : plan.ranks) {
    bytes += rank.bytes;
    arena += rank.arena_bytes;
    rank_bytes.push_back(rank.bytes);
    ranks.push_back({{"rank", rank.rank},
                     {"bytes", rank.bytes},
                     {"arena_bytes", rank.arena_bytes},
                     {"aligned_bytes", rank.aligned_bytes},
                     {"reads", rank.n_reads},
                     {"leaves", rank.n_leaves},
                     {"parts", rank.n_parts}});
  }
  const LoadFloor floor = floor_of(rank_bytes, hardware);
  const uint64_t free = free_memory({});
  const bool fits = arena <= free;
  if (options.json) {
    nlohmann::ordered_json object{{"tp", plan.tp},        {"bytes", bytes},
                                  {"arena_bytes", arena}, {"free_memory_bytes", free},
                                  {"fits", fits},         {"ranks", ranks}};
    if (floor.seconds > 0) {
      object["floor"] = {{"seconds", floor.seconds},
                         {"storage_s", floor.storage_s},
                         {"links_s", floor.links_s},
                         {"expected_s", floor.expected_s}};
    }
    print_json(object);
    return 0;
  }
  for (const PlanRank& rank : plan.ranks) print_rank(rank);
  print(str("tp ", plan.tp, ": ", human_bytes(static_cast<double>(bytes)), " to read; arenas ",
            human_bytes(static_cast<double>(arena)), " of ", human_bytes(static_cast<double>(free)),
            " free memory: ", fits ? "fits" : "does not fit", "\n"));
  if (!options.out.empty()) print(order_of(options.out, plan.tp));
  print_floor(floor, hardware, bytes, plan.ranks.size());
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<PlanCommand>();
  CLI::App* command = app.add_subcommand(
      "plan", "What loading a rank checkpoint would do: bytes, reads, alignment, does it fit, floor");
  command->add_option("OUT", options->out, "Rank checkpoint");
  command->add_option("--like", options->like, "… or a model that synth knows, as if it had been cut");
  command->add_option("--dtype", options->dtype, "With --like: bf16, or fp8 (the layers' matrices at one byte a value)")
      ->check(one_of({"bf16", "fp8"}))
      ->capture_default_str();
  command->add_option("--layers", options->n_layers, "With --like: layers in place of the model's own number")
      ->check(whole_number(1, 1024));
  command->add_option("--part-size", options->part_size, "With --like: wanted size of a part")->capture_default_str();
  command->add_option("--tp", options->tp, "Tensor-parallel size (default: what run takes on the CPU; with --like 1)")
      ->check(whole_number(1, 1024));
  command->add_option("--storage-gbs", options->storage_gb_per_s, "GB/s of the storage, for the floor")
      ->check(number(1e-3, 1e6));
  command->add_option("--links", options->links, "Links to GPUs and GB/s of each, for the floor, such as 8x55");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->footer(
      "Examples:\n  firstlight plan llama-ranks --tp 8\n  firstlight plan --like llama-3.1-405b --dtype fp8 --tp 8 "
      "--storage-gbs 100.9 --links 8x55");
  command->callback([options, command, &chosen] {
    for (const char* name : {"--dtype", "--layers", "--part-size"}) {
      options->of_like = options->of_like || command->count(name) > 0;
    }
    chosen = [options](Context& context) { return run_plan(context, *options); };
  });
}

}  // namespace firstlight::cli
