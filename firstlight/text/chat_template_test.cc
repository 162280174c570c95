// SPDX-License-Identifier: Apache-2.0
// Chat templates against what transformers' own Jinja2 environment rendered (tools/make_chat_templates.py), and against
// templates written to do harm.
#include "firstlight/text/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight {
namespace {

using nlohmann::json;

json load(const std::string& name) {
  std::ifstream file(std::string(FIRSTLIGHT_TESTDATA) + "/chat_templates/" + name);
  EXPECT_TRUE(file.good()) << name;
  return json::parse(file);
}

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> out;
  for (const json& each : list) out.push_back({each.at("role"), each.at("content")});
  return out;
}

// The clock that the golden data was made with: Friday, 26 July 2024, 13:05:09.
std::tm golden_time() {
  std::tm time{};
  time.tm_year = 124;
  time.tm_mon = 6;
  time.tm_mday = 26;
  time.tm_wday = 5;
  time.tm_yday = 207;
  time.tm_hour = 13;
  time.tm_min = 5;
  time.tm_sec = 9;
  return time;
}

ChatTemplate::Options default_options() {
  ChatTemplate::Options options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  options.now = golden_time();
  return options;
}

std::string render(std::string_view source, ChatTemplateLimits limits = {}) {
  return ChatTemplate(source, limits).render({{"user", "hi"}}, default_options());
}

std::optional<Error> error_of(std::string_view source, ChatTemplateLimits limits = {}) {
  try {
    render(source, limits);
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

void expect_error(std::string_view source, ErrorKind kind, std::string_view part) {
  const auto error = error_of(source);
  ASSERT_TRUE(error) << source;
  EXPECT_EQ(error->kind(), kind) << source << ": " << error->what();
  EXPECT_NE(std::string_view(error->what()).find(part), std::string_view::npos) << source << ": " << error->what();
}

TEST(ChatTemplate, EveryFamilysTemplateRendersAsJinja2RendersIt) {
  int n = 0;
  for (const json& family : load("families.json")) {
    const ChatTemplate chat_template(family.at("template").get<std::string>());
    for (const json& test : family.at("cases")) {
      ChatTemplate::Options options;
      options.add_generation_prompt = test.at("add_generation_prompt");
      options.bos_token = test.value("bos_token", "");
      options.eos_token = test.value("eos_token", "");
      options.now = golden_time();
      std::optional<std::string> expected, found;
      if (!test.at("expected").is_null()) expected = test.at("expected").get<std::string>();
      std::string error;
      try {
        found = chat_template.render(messages_of(test.at("messages")), options);
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::bad_input) << e.what();
        error = e.what();
      }
      EXPECT_EQ(found, expected) << family.at("name") << " " << test.at("messages") << " " << error;
      ++n;
    }
  }
  EXPECT_GE(n, 150);
}

TEST(ChatTemplate, RandomTemplatesRenderAsJinja2RendersThem) {
  const json data = load("random.json");
  const std::string prelude = data.at("prelude");
  const auto messages = messages_of(data.at("messages"));
  int n = 0;
  for (const json& test : data.at("cases")) {
    std::optional<std::string> expected, found;
    if (!test.at("x").is_null()) expected = test.at("x").get<std::string>();
    std::string error;
    try {
      found = ChatTemplate(prelude + test.at("t").get<std::string>()).render(messages, default_options());
    } catch (const Error& e) {
      error = e.what();
    }
    EXPECT_EQ(found, expected) << test.at("t").get<std::string>() << "\n" << error;
    ++n;
  }
  EXPECT_GE(n, 500);
}

TEST(ChatTemplate, RaiseExceptionIsAnErrorWithTheTemplatesOwnText) {
  expect_error("{{ raise_exception('Roles must ' ~ 'alternate') }}", ErrorKind::bad_input, "Roles must alternate");
}

TEST(ChatTemplate, ASyntaxErrorNamesItsLine) {
  expect_error("a\nb\n{% if x %}\n{{ 1 + }}\n{% endif %}", ErrorKind::bad_input, "line 4");
  expect_error("\n{% if x %}", ErrorKind::bad_input, "endif");
  expect_error("{{ 'abc }}", ErrorKind::bad_input, "string");
  expect_error("{{ (1 }}", ErrorKind::bad_input, "line 1");
  expect_error("{# never ends", ErrorKind::bad_input, "comment");
  expect_error("{% raw %} {{", ErrorKind::bad_input, "raw");
  expect_error("{% endfor %}", ErrorKind::bad_input, "endfor");
  expect_error("{% break %}", ErrorKind::bad_input, "outside");
  expect_error("{{ 1 § 2 }}", ErrorKind::bad_input, "§");
  expect_error("{{ 99999999999999999999 }}", ErrorKind::bad_input, "64 bits");
  expect_error("\xff", ErrorKind::bad_input, "UTF-8");
}

TEST(ChatTemplate, WhatIsNotKnownIsRefusedByName) {
  expect_error("{% include 'x' %}", ErrorKind::unsupported, "'include'");
  expect_error("{% do x %}", ErrorKind::unsupported, "'do'");
  expect_error("{{ x|wordwrap }}", ErrorKind::unsupported, "'wordwrap'");
  expect_error("{{ x is nonsense }}", ErrorKind::unsupported, "'nonsense'");
  expect_error("{{ 'a'.encode() }}", ErrorKind::unsupported, "str.encode");
  expect_error("{{ 9223372036854775807 + 1 }}", ErrorKind::unsupported, "64 bits");
  expect_error("{{ strftime_now('%Q') }}", ErrorKind::unsupported, "%Q");
}

TEST(ChatTemplate, AnUnknownFilterOnAPathNotTakenDoesNoHarm) {
  EXPECT_EQ(render("{% if tools %}{{ tools|nonsense }}{% endif %}x"), "x");
  EXPECT_EQ(render("{{ tools|nonsense if tools else 'y' }}"), "y");
  expect_error("{% if messages %}{{ 1|nonsense }}{% endif %}", ErrorKind::unsupported, "'nonsense'");
}

TEST(ChatTemplate, ARuntimeErrorNamesTheLineAndTheName) {
  expect_error("a\n{{ nothing.at.all }}", ErrorKind::bad_input, "line 2: 'nothing' is undefined");
  expect_error("{{ messages.append(1) }}", ErrorKind::bad_input, "'append' is undefined");
  expect_error("{{ 1 / 0 }}", ErrorKind::bad_input, "zero");
}

TEST(ChatTemplate, NothingOutsideOfTheValuesCanBeReached) {
  EXPECT_EQ(render("{{ ''.__class__ }}{{ messages.__class__ }}{{ messages[0]['__class__'] }}"), "");
  expect_error("{{ ''.__class__.__mro__ }}", ErrorKind::bad_input, "undefined");
  expect_error("{{ range.__self__() }}", ErrorKind::bad_input, "undefined");
}

TEST(ChatTemplate, HostileTemplatesEndInAnErrorSoon) {
  const std::vector<std::string> hostile = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{{ range(100001)|list }}",
      "{{ range(-9223372036854775807, 9223372036854775807)|length }}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s] %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(50) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, "
      "ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson "
      "}}",
      "{{ 'x' * 99999999999 }}",
      "{{ ('x' * 9999999) * 9999999 }}",
      "{{ [1] * 99999999999 }}",
      "{{ ('x' * 60000000)|replace('', 'yyyyyyyyyyyyyyyyyyyyy') }}",
      "{{ 'x'.center(99999999999) }}",
      "{{ 'x\\ny'|indent(99999999999) }}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(x=f()) %}{% endmacro %}{{ f() }}",
      "{{ 10 ** 99999999999 }}",
      "{% for c in 'x' * 50000000 %}{% endfor %}",
      "{{ ('x ' * 30000000).split()|length }}",
      "{{ ('x' * 60000000)|list|length }}",
      "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
  };
  for (const std::string& source : hostile) {
    const auto error = error_of(source);
    ASSERT_TRUE(error) << source;
    EXPECT_TRUE(error->kind() == ErrorKind::bad_input || error->kind() == ErrorKind::unsupported)
        << source << ": " << error->what();
  }
}

std::string repeated(std::string_view piece, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += piece;
  return out;
}

TEST(ChatTemplate, DeepNestingIsRefusedWithoutTheStack) {
  for (const std::string_view open :
       {"(", "[", "{1:", "not ", "-", "1 if 1 else ", "x[", "f(", "x|d(", "x is eq(", "x is eq "}) {
    EXPECT_TRUE(error_of("{{ " + repeated(open, 100'000))) << open;
  }
  EXPECT_TRUE(error_of(repeated("{% if 1 %}", 50'000)));
  EXPECT_TRUE(error_of(repeated("{% for x in y %}", 50'000)));
  EXPECT_TRUE(error_of("{% for " + repeated("(", 50'000)));
  EXPECT_TRUE(error_of(std::string((1u << 20) + 1, ' ')));
}

TEST(ChatTemplate, LongChainsAreNotDeep) {
  EXPECT_EQ(render("{{ 0" + repeated(" + 1", 20'000) + " }}"), "20000");
  EXPECT_EQ(render("{{ 'a'" + repeated(" ~ 'b'", 20'000) + " }}").size(), 20'001u);
  EXPECT_EQ(render("{{ ' a '" + repeated("|trim", 20'000) + " }}"), "a");
  EXPECT_EQ(render("{% if 0 %}" + repeated("{% elif 0 %}", 20'000) + "{% else %}x{% endif %}"), "x");
}

TEST(ChatTemplate, CirclesAmongNamespacesAndMacrosAreFreed) {
  // The leak checker is the judge.
  EXPECT_EQ(render("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = [b, a] %}x"), "x");
  EXPECT_EQ(
      render(
          "{% set ns = namespace() %}{% for i in range(2000) %}{% set old = ns.m %}{% macro m() %}{{ i }}{% endmacro %}"
          "{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
      "1999");
}

TEST(ChatTemplate, LimitsAreThoseGiven) {
  ChatTemplateLimits limits;
  limits.max_output_bytes = 10;
  EXPECT_EQ(render("0123456789", limits), "0123456789");
  EXPECT_TRUE(error_of("0123456789a", limits));
  limits = {};
  limits.max_steps = 100;
  EXPECT_EQ(render("{% for i in range(5) %}x{% endfor %}", limits), "xxxxx");
  EXPECT_TRUE(error_of("{% for i in range(500) %}x{% endfor %}", limits));
}

TEST(ChatTemplate, ConversationsOfManyMegabytesAreWithinTheLimits) {
  const std::string text = repeated("word, 字\n", 200'000);  // 2 MB
  const std::vector<ChatMessage> messages{
      {"user", text}, {"assistant", "<think>" + text + "</think>" + text}, {"user", text}};
  for (const json& family : load("families.json")) {
    const ChatTemplate chat_template(family.at("template").get<std::string>());
    EXPECT_GE(chat_template.render(messages, default_options()).size(), 3 * text.size()) << family.at("name");
  }
}

TEST(ChatTemplate, InvalidBytesInAMessageBecomeTheReplacementCharacter) {
  const ChatTemplate chat_template("{{ messages[0].content }}|{{ messages[0].content|length }}");
  EXPECT_EQ(chat_template.render({{"user", "a\xff\xe2\x82"}}, {}), "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|4");
}

TEST(ChatTemplate, OneTemplateRendersManyTimesAlike) {
  const ChatTemplate chat_template(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(chat_template.render({{"user", "a"}, {"user", "b"}}, {}), "2");
}

TEST(JinjaText, CaseMappingsAreFullAndGiveUpOnFinalSigma) {
  EXPECT_EQ(jinja::to_upper("straße ŉ ﬁ ǆ"), "STRASSE ʼN FI Ǆ");
  EXPECT_EQ(jinja::to_lower("ÀÉİ"), "àéi̇");
  EXPECT_EQ(jinja::capitalize("ǆAB"), "ǅab");
  EXPECT_FALSE(jinja::to_lower("ΟΔΟΣ").has_value());
}

}  // namespace
}  // namespace firstlight
