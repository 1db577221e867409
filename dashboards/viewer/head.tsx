/** The line above a dashboard: its title, the variables, the links to other dashboards, and the time. */

import { Button, Combobox, LinkButton, MultiCombobox, RadioButtonGroup } from '@grafana/ui';

import {
  ALL,
  type Chosen,
  type Dashboard,
  type DashboardLink,
  type Place,
  SPANS,
  type Settings,
  type Variable,
  parametersOf,
} from './model';
import { type Filling, inText, optionsOf } from './variables';

interface HeadProps {
  settings: Settings;
  dashboard: Dashboard;
  place: Place;
  filling: Filling | undefined;
  go: (to: Place) => void;
  live: boolean;
  setLive: (live: boolean) => void;
}

export function Head({ settings, dashboard, place, filling, go, live, setLive }: HeadProps) {
  const spans = SPANS.map((minutes) => ({ label: `${minutes} min`, value: `now-${minutes}m` }));
  return (
    <div style={{ display: 'flex', flexWrap: 'wrap', gap: 8, alignItems: 'center', marginBottom: 8 }}>
      <h3 style={{ margin: 0 }} title={dashboard.description}>
        {dashboard.title}
      </h3>
      {filling?.variables
        .filter((each) => ['query', 'custom'].includes(each.type) && each.hide !== 2)
        .map((variable) => (
          <Choice
            key={variable.name}
            variable={variable}
            chosen={filling.chosen}
            onChange={(chosen) => go({ ...place, chosen })}
          />
        ))}
      <span style={{ flexGrow: 1 }} />
      {linksOf(dashboard, settings.dashboards, place, filling).map((link) => (
        <LinkButton key={link.href} href={link.href} size="sm" variant="secondary" icon="apps">
          {link.title}
        </LinkButton>
      ))}
      <RadioButtonGroup
        size="sm"
        options={spans}
        value={place.from}
        onChange={(from) => go({ ...place, from, to: 'now' })}
      />
      <Button size="sm" variant="secondary" icon={live ? 'pause' : 'play'} onClick={() => setLive(!live)}>
        {live ? '5s' : 'stopped'}
      </Button>
    </div>
  );
}

function Choice({
  variable,
  chosen,
  onChange,
}: {
  variable: Variable;
  chosen: Chosen;
  onChange: (chosen: Chosen) => void;
}) {
  const options = optionsOf(variable).map((value) => ({ label: value, value }));
  const all = variable.includeAll ? [{ label: 'All', value: ALL }] : [];
  const values = chosen[variable.name] ?? [];
  const change = (next: string[]) => {
    const narrowed =
      next.length > 1 && values.includes(ALL)
        ? next.filter((value) => value !== ALL)
        : next.includes(ALL)
          ? [ALL]
          : next;
    onChange({ ...chosen, [variable.name]: narrowed.length ? narrowed : [ALL] });
  };
  return (
    <label style={{ display: 'flex', gap: 6, alignItems: 'center', margin: 0 }}>
      {variable.label ?? variable.name}
      {variable.multi ? (
        <MultiCombobox
          width="auto"
          minWidth={6}
          options={[...all, ...options]}
          value={values}
          onChange={(next) => change(next.map((each) => each.value))}
        />
      ) : (
        <Combobox
          width="auto"
          minWidth={6}
          options={[...all, ...options]}
          value={values[0] ?? null}
          onChange={(next) => change([next.value])}
        />
      )}
    </label>
  );
}

/** The dashboard's links: to others by tag, or to an address. */
function linksOf(
  dashboard: Dashboard,
  all: Dashboard[],
  place: Place,
  filling?: Filling,
): Array<{ title: string; href: string }> {
  const carried = (link: DashboardLink) =>
    parametersOf(
      link.keepTime ? place.from : 'now-5m',
      link.keepTime ? place.to : 'now',
      link.includeVars ? (filling?.chosen ?? {}) : {},
    );
  return (dashboard.links ?? []).flatMap((link) => {
    if (link.type === 'dashboards') {
      return all
        .filter((other) => other.uid !== dashboard.uid && link.tags.every((tag) => other.tags?.includes(tag)))
        .map((other) => ({ title: other.title ?? '', href: `/d/${other.uid}?${carried(link)}` }));
    }
    const url = inText(link.url ?? '', filling ?? { variables: [], chosen: {}, builtin: {} });
    return [
      {
        title: link.title,
        href: url.startsWith('/d/') ? `${url}${url.includes('?') ? '&' : '?'}${carried(link)}` : url,
      },
    ];
  });
}
