/**
 * A page that draws the dashboard files of this project with Grafana's components, from a Prometheus that
 * the server of this page passes requests on to. It is there to look at, in a demo and for the pictures in
 * the documentation; it must never become a Grafana: no editing, no alerts, no state but the page's address.
 */

import { createTheme } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles, ThemeContext } from '@grafana/ui';
import { StrictMode, useCallback, useEffect, useMemo, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { Section, sections } from './grid';
import { Head } from './head';
import {
  type Dashboard,
  type Place,
  type Settings,
  addressOf,
  parametersOf,
  place as readPlace,
  rangeOf,
} from './model';
import { prometheus } from './prometheus';
import { noted } from './settled';
import { type Filling, resolve } from './variables';

const REFRESH = 5000;

const theme = createTheme({ colors: { mode: 'dark' } });

function Page({ settings }: { settings: Settings }) {
  const [place, setPlace] = useState(() => readPlace(settings.dashboards));
  const [tick, setTick] = useState(0);
  const [live, setLive] = useState(new URLSearchParams(window.location.search).get('refresh') !== 'off');
  const dashboard = settings.dashboards.find((each) => each.uid === place.uid);
  const go = useCallback((to: Place) => {
    window.history.pushState(null, '', addressOf(to));
    setPlace(to);
  }, []);
  useEffect(() => {
    const back = () => setPlace(readPlace(settings.dashboards));
    window.addEventListener('popstate', back);
    return () => window.removeEventListener('popstate', back);
  }, [settings]);
  useEffect(() => {
    const timer = live ? setInterval(() => setTick((now) => now + 1), REFRESH) : undefined;
    return () => clearInterval(timer);
  }, [live]);
  const [filling, problem] = useFilling(dashboard, place, tick);
  const range = useMemo(() => rangeOf(place), [place, tick]);
  if (!dashboard) {
    return (
      <p style={{ padding: 16 }}>
        No dashboard with uid {place.uid}. There are: {settings.dashboards.map((each) => each.uid).join(', ')}
        .
      </p>
    );
  }
  return (
    <div style={{ padding: '8px 16px', minHeight: '100vh', background: theme.colors.background.canvas }}>
      <Head
        settings={settings}
        dashboard={dashboard}
        place={place}
        filling={filling}
        go={go}
        live={live}
        setLive={setLive}
      />
      {problem && <p style={{ color: theme.colors.error.text }}>{problem}</p>}
      {filling &&
        sections(dashboard).map((section) => (
          <Section key={section.key} section={section} {...{ filling, range, settings }} />
        ))}
    </div>
  );
}

function useFilling(
  dashboard: Dashboard | undefined,
  place: Place,
  tick: number,
): [Filling | undefined, string] {
  const [filling, setFilling] = useState<Filling>();
  const [problem, setProblem] = useState('');
  useEffect(() => {
    let gone = false;
    noted(resolve(dashboard?.templating?.list ?? [], place.chosen, prometheus)).then(
      ({ variables, chosen }) => {
        const search = parametersOf(place.from, place.to, {});
        const builtin = {
          __url_time_range: search,
          __all_variables: parametersOf(place.from, place.to, chosen).slice(search.length + 1),
        };
        const made = { variables, chosen, builtin };
        if (!gone) {
          setProblem('');
          setFilling((before) => (JSON.stringify(before) === JSON.stringify(made) ? before : made));
        }
      },
      (error) => !gone && setProblem(String(error)),
    );
    return () => {
      gone = true;
    };
  }, [dashboard, place, tick]);
  return [filling, problem];
}

async function start(): Promise<void> {
  await initPluginTranslations('xskd');
  const root = createRoot(document.getElementById('root') as HTMLElement);
  const answer = await fetch('/viewer.json');
  const settings: Settings = await answer.json();
  root.render(
    <StrictMode>
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        <Page settings={settings} />
      </ThemeContext.Provider>
    </StrictMode>,
  );
}

void start();
